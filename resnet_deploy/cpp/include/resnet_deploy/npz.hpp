// NumPy archives as numpy.savez writes them: arrays stored without compression in a zip.
//
// By PKWARE's APPNOTE 6.3.10 (4.3.7, 4.3.12, 4.3.16) and NumPy's NEP 1. Checksums are not looked at: whoever reads a
// bundle holds the whole file against its SHA-256.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "resnet_deploy/errors.hpp"

namespace resnet_deploy {

enum class ArrayType { uint8, float32 };

/// A view of one array in an archive; the archive's bytes are the caller's.
struct ArrayView {
  ArrayType type = ArrayType::uint8;
  std::vector<std::size_t> shape;
  const char* data = nullptr;  ///< In C order; not aligned.
  std::size_t nbytes = 0;
};

namespace detail {

[[noreturn]] inline void refuse_archive(const std::string& reason) { throw Error(Code::bundle, reason); }

/// Little-endian bytes, every access within bounds.
class Bytes {
 public:
  Bytes(const char* data, std::size_t size) : data_(data), size_(size) {}

  std::size_t size() const noexcept { return size_; }
  const char* at(std::size_t offset, std::size_t count) const {
    if (offset > size_ || count > size_ - offset) refuse_archive("the archive is cut short");
    return data_ + offset;
  }
  std::uint32_t number(std::size_t offset, std::size_t count) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(at(offset, count));
    std::uint32_t value = 0;
    for (std::size_t i = count; i-- > 0;) value = value << 8 | bytes[i];
    return value;
  }
  std::uint32_t u16(std::size_t offset) const { return number(offset, 2); }
  std::uint32_t u32(std::size_t offset) const { return number(offset, 4); }
  Bytes part(std::size_t offset, std::size_t count) const { return {at(offset, count), count}; }
  std::string text(std::size_t offset, std::size_t count) const { return {at(offset, count), count}; }

 private:
  const char* data_;
  std::size_t size_;
};

/// Where the central directory ends; a comment of up to 64 KiB may follow.
inline std::size_t find_end(const Bytes& file) {
  constexpr std::size_t record = 22, max_comment = 65535;
  if (file.size() < record) refuse_archive("it is no archive");
  const std::size_t last = file.size() - record, first = last > max_comment ? last - max_comment : 0;
  for (std::size_t offset = last + 1; offset-- > first;) {
    if (file.u32(offset) == 0x06054b50 && offset + record + file.u16(offset + 20) == file.size()) return offset;
  }
  refuse_archive("it is no archive");
}

/// The stored bytes of the entry whose central header begins at `offset`.
inline Bytes entry_data(const Bytes& file, std::size_t offset) {
  const std::size_t size = file.u32(offset + 20), local = file.u32(offset + 42);
  if ((file.u16(offset + 8) & 1) != 0 || file.u16(offset + 10) != 0 || size != file.u32(offset + 24)) {
    refuse_archive("an array is compressed or encrypted");
  }
  if (size == 0xffffffff || local == 0xffffffff) refuse_archive("an array is 4 GiB or larger");
  if (file.u32(local) != 0x04034b50) refuse_archive("the archive's directory is damaged");
  // Sizes in the local header are not looked at: numpy.savez leaves them to its ZIP64 field.
  return file.part(local + 30 + file.u16(local + 26) + file.u16(local + 28), size);
}

/// Takes the header of an array apart: a Python dictionary, as NumPy writes it.
class HeaderText {
 public:
  explicit HeaderText(std::string text) : text_(std::move(text)) {}

  void expect(const char* token) {
    if (text_.compare(place_, std::strlen(token), token) != 0)
      refuse_archive("an array's header is not as NumPy writes it");
    place_ += std::strlen(token);
  }
  bool take(const char* token) {
    const bool is_there = text_.compare(place_, std::strlen(token), token) == 0;
    if (is_there) place_ += std::strlen(token);
    return is_there;
  }
  std::size_t number() {
    std::size_t value = 0, digits = 0;
    for (; place_ < text_.size() && text_[place_] >= '0' && text_[place_] <= '9'; ++place_, ++digits) {
      value = value * 10 + static_cast<std::size_t>(text_[place_] - '0');
    }
    if (digits == 0 || digits > 10) refuse_archive("an array's shape is not as NumPy writes it");
    return value;
  }

 private:
  std::string text_;
  std::size_t place_ = 0;
};

inline ArrayView read_header(std::string text) {
  HeaderText header(std::move(text));
  ArrayView array;
  header.expect("{'descr': '");
  if (header.take("<f4")) {
    array.type = ArrayType::float32;
  } else if (!header.take("|u1")) {
    refuse_archive("an array is neither uint8 nor float32");
  }
  header.expect("', 'fortran_order': ");
  if (header.take("True")) refuse_archive("an array is in Fortran's order");
  header.expect("False, 'shape': (");
  while (!header.take(")")) {
    if (array.shape.size() == 8) refuse_archive("an array has more than 8 dimensions");
    array.shape.push_back(header.number());
    if (!header.take(", ") && !header.take(",")) {
      header.expect(")");
      break;
    }
  }
  header.expect(", }");
  return array;
}

inline ArrayView read_npy(const Bytes& file) {
  if (std::memcmp(file.at(0, 8), "\x93NUMPY", 6) != 0) refuse_archive("an entry is no NumPy array");
  const std::uint32_t major = file.number(6, 1);
  if (major < 1 || major > 3) refuse_archive("an array is of a later format");
  const std::size_t start = major == 1 ? 10 : 12, length = major == 1 ? file.u16(8) : file.u32(8);
  ArrayView array = read_header(file.text(start, length));
  const Bytes data = file.part(start + length, file.size() - start - length);
  array.nbytes = array.type == ArrayType::float32 ? 4 : 1;
  for (const std::size_t side : array.shape) {
    if (side != 0 && array.nbytes > data.size() / side) refuse_archive("an array is cut short");
    array.nbytes *= side;
  }
  if (array.nbytes != data.size()) refuse_archive("an array is not as long as its shape says");
  array.data = data.at(0, array.nbytes);
  return array;
}

}  // namespace detail

/// Find the arrays in an archive, by name; views into `size` bytes at `data`.
///
/// Raises: Code::bundle, with the reason.
inline std::map<std::string, ArrayView> read_npz(const char* data, std::size_t size) {
  const detail::Bytes file(data, size);
  const std::size_t end = detail::find_end(file);
  const std::size_t count = file.u16(end + 10);
  std::size_t offset = file.u32(end + 16);
  if (count == 0xffff || offset == 0xffffffff) detail::refuse_archive("it is a ZIP64 archive");
  std::map<std::string, ArrayView> arrays;
  for (std::size_t i = 0; i < count; ++i) {
    if (file.u32(offset) != 0x02014b50) detail::refuse_archive("the archive's directory is damaged");
    const std::size_t name_size = file.u16(offset + 28);
    std::string name = file.text(offset + 46, name_size);
    if (name_size > 4 && name.compare(name_size - 4, 4, ".npy") == 0) name.resize(name_size - 4);
    const ArrayView array = detail::read_npy(detail::entry_data(file, offset));
    if (!arrays.emplace(std::move(name), array).second) detail::refuse_archive("two arrays have one name");
    offset += 46 + name_size + file.u16(offset + 30) + file.u16(offset + 32);
  }
  return arrays;
}

}  // namespace resnet_deploy
