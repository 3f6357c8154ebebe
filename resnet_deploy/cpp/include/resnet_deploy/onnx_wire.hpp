// Whether an ONNX file keeps tensors in other files, told from its bytes (onnx_wire.py): a backend would read these from
// the working directory, and no digest of the bundle covers them. Field numbers are those of onnx.proto, the encoding is
// that of https://protobuf.dev/programming-guides/encoding/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "resnet_deploy/errors.hpp"

namespace resnet_deploy::detail {

/// Messages of ONNX that hold tensors, or what holds some.
enum class OnnxPart : std::uint8_t { model, training, graph, node, attribute, sparse, function, tensor };

/// What a field of a message holds, where that may lead to a tensor.
inline std::optional<OnnxPart> onnx_part(OnnxPart inside, std::uint64_t field) {
  struct Row {
    OnnxPart inside;
    std::uint64_t field;
    OnnxPart part;
  };
  static constexpr Row rows[] = {
      {OnnxPart::model, 7, OnnxPart::graph},       {OnnxPart::model, 20, OnnxPart::training},
      {OnnxPart::model, 25, OnnxPart::function},   {OnnxPart::training, 1, OnnxPart::graph},
      {OnnxPart::training, 2, OnnxPart::graph},    {OnnxPart::graph, 1, OnnxPart::node},
      {OnnxPart::graph, 5, OnnxPart::tensor},      {OnnxPart::graph, 15, OnnxPart::sparse},
      {OnnxPart::node, 5, OnnxPart::attribute},    {OnnxPart::attribute, 5, OnnxPart::tensor},
      {OnnxPart::attribute, 6, OnnxPart::graph},   {OnnxPart::attribute, 10, OnnxPart::tensor},
      {OnnxPart::attribute, 11, OnnxPart::graph},  {OnnxPart::attribute, 22, OnnxPart::sparse},
      {OnnxPart::attribute, 23, OnnxPart::sparse}, {OnnxPart::sparse, 1, OnnxPart::tensor},
      {OnnxPart::sparse, 2, OnnxPart::tensor},     {OnnxPart::function, 7, OnnxPart::node},
      {OnnxPart::function, 11, OnnxPart::attribute},
  };
  for (const Row& row : rows) {
    if (row.inside == inside && row.field == field) return row.part;
  }
  return std::nullopt;
}

/// Reads the fields of one message, one after the other.
class WireReader {
 public:
  WireReader(const std::string& data, std::size_t begin, std::size_t end) : data_(data), at_(begin), end_(end) {}

  bool at_end() const noexcept { return at_ == end_; }
  std::size_t at() const noexcept { return at_; }

  /// Raises: Code::bundle, where it is cut short.
  std::uint64_t varint() {
    std::uint64_t number = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) break;
      const auto byte = static_cast<unsigned char>(data_[at_++]);
      number |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
      if (byte < 0x80U) return number;
    }
    throw Error(Code::bundle, "it was cut short");
  }

  void skip(std::uint64_t length) {
    if (length > end_ - at_) throw Error(Code::bundle, "it was cut short");
    at_ += static_cast<std::size_t>(length);
  }

 private:
  const std::string& data_;
  std::size_t at_, end_;
};

/// Whether a tensor of a serialized model is declared to lie in another file.
///
/// Raises: Code::bundle, if `data` is no protobuf message, as far as it was read.
inline bool has_external_tensors(const std::string& data) {
  // Such a tensor says where it lies, under this key: without the word, which is quick to look for, there is none.
  if (data.find("location") == std::string::npos) return false;
  struct Waiting {
    std::size_t begin, end;
    OnnxPart part;
  };
  std::vector<Waiting> waiting{{0, data.size(), OnnxPart::model}};
  while (!waiting.empty()) {
    const Waiting one = waiting.back();
    waiting.pop_back();
    for (WireReader reader(data, one.begin, one.end); !reader.at_end();) {
      const std::uint64_t key = reader.varint(), field = key >> 3U, wire = key & 7U;
      if (field == 0) throw Error(Code::bundle, "it has a field without a number");
      if (wire == 0) {
        const bool elsewhere = reader.varint() != 0;
        if (one.part == OnnxPart::tensor && field == 14 && elsewhere) return true;  // data_location
      } else if (wire == 2) {
        const std::uint64_t length = reader.varint();
        const std::size_t begin = reader.at();
        reader.skip(length);
        if (one.part == OnnxPart::tensor && field == 13) return true;  // external_data
        if (const auto part = onnx_part(one.part, field)) waiting.push_back({begin, reader.at(), *part});
      } else if (wire == 1 || wire == 5) {
        reader.skip(wire == 1 ? 8 : 4);
      } else {
        throw Error(Code::bundle, "it has a field of wire type " + std::to_string(wire));
      }
    }
  }
  return false;
}

}  // namespace resnet_deploy::detail
