// JSON that comes from anywhere: read within limits, and written in the one form that manifests are digested in.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "resnet_deploy/errors.hpp"

namespace resnet_deploy {

using Json = nlohmann::json;  ///< Objects keep their keys in the order of their bytes, which is that of code points.

namespace detail {

inline constexpr std::size_t max_json_depth = 64;          // a manifest has 5
inline constexpr std::size_t max_json_values = 1'000'000;  // 100,000 classes with a label and a folder each are 200,000

/// Builds the tree while nlohmann-json reads, and stops it at the first thing that is refused.
class JsonBuilder {
 public:
  Json root;
  std::string refusal;

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string& text) {
    // Integers beyond 64 bits arrive here too; as an approximation they would have another digest.
    return text.find_first_of(".eE") == std::string::npos ? refuse("an integer is out of range") : add(value);
  }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t&) { return refuse("binary data"); }
  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    auto [place, is_new] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!is_new) return refuse("the key \"" + name.substr(0, 80) + "\" is given twice");
    place_ = &place->second;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) {
    return refuse("it is no JSON from byte " + std::to_string(position > 0 ? position - 1 : 0) + " on");
  }

 private:
  bool refuse(std::string reason) {
    refusal = std::move(reason);
    return false;
  }

  Json* put(Json value) {
    if (open_.empty()) return &(root = std::move(value));
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    return &(*place_ = std::move(value));
  }

  bool add(Json value) {
    if (++values_ > max_json_values) return refuse("it has more than a million values");
    put(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (open_.size() >= max_json_depth) return refuse("it is nested too deeply");
    if (++values_ > max_json_values) return refuse("it has more than a million values");
    open_.push_back(put(std::move(value)));  // stays where it is: its own container does not grow while it is open
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<Json*> open_;
  Json* place_ = nullptr;  // where the value of the last key goes
  std::size_t values_ = 0;
};

inline void write_text(const std::string& text, std::string& out) {
  static constexpr const char* hex = "0123456789abcdef";
  static constexpr const char letters[] = "btn\0fr";  // the letters of \b \t \n, none, \f \r: codes 8 to 13
  out += '"';
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (code >= 8 && code <= 13 && letters[code - 8] != '\0') {
      out += {'\\', letters[code - 8]};
    } else if (code < 0x20) {
      out += {'\\', 'u', '0', '0', hex[code >> 4], hex[code & 15]};
    } else {
      out += c;
    }
  }
  out += '"';
}

/// The shortest digits that are read back as `value`, laid out as msgspec does: plain from 1e-5 up to 1e16.
inline void write_number(double value, std::string& out) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string digits(buffer, end);  // [-]d[.ddd]e±dd
  if (digits.front() == '-') {
    out += '-';
    digits.erase(0, 1);
  }
  const std::size_t mark = digits.find('e');
  const int exponent = std::stoi(digits.substr(mark + 1));
  digits.erase(mark);
  if (digits.size() > 1) digits.erase(1, 1);
  const int count = static_cast<int>(digits.size());
  const int point = exponent + 1;  // how many digits stand before the decimal point
  if (value == 0) {
    out += "0.0";
  } else if (point > 16 || point <= -5) {
    out += digits.substr(0, 1);
    if (count > 1) out += '.' + digits.substr(1);
    out += 'e' + std::to_string(exponent);
  } else if (point <= 0) {
    out += "0." + std::string(static_cast<std::size_t>(-point), '0') + digits;
  } else if (point >= count) {
    out += digits + std::string(static_cast<std::size_t>(point - count), '0') + ".0";
  } else {
    out += digits.substr(0, static_cast<std::size_t>(point)) + '.' + digits.substr(static_cast<std::size_t>(point));
  }
}

inline void write_json(const Json& value, std::string& out);

inline void write_array(const Json& array, std::string& out) {
  out += '[';
  const char* comma = "";
  for (const Json& item : array) {
    out += std::exchange(comma, ",");
    write_json(item, out);
  }
  out += ']';
}

inline void write_object(const Json& object, std::string& out) {
  out += '{';
  const char* comma = "";
  for (const auto& [name, item] : object.get_ref<const Json::object_t&>()) {
    out += std::exchange(comma, ",");
    write_text(name, out);
    out += ':';
    write_json(item, out);
  }
  out += '}';
}

inline void write_json(const Json& value, std::string& out) {
  switch (value.type()) {
    case Json::value_t::object:
      return write_object(value, out);
    case Json::value_t::array:
      return write_array(value, out);
    case Json::value_t::string:
      return write_text(value.get_ref<const std::string&>(), out);
    case Json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return;
    case Json::value_t::number_integer:
      out += std::to_string(value.get<std::int64_t>());
      return;
    case Json::value_t::number_unsigned:
      out += std::to_string(value.get<std::uint64_t>());
      return;
    case Json::value_t::number_float:
      return write_number(value.get<double>(), out);
    default:
      out += "null";
      return;
  }
}

}  // namespace detail

/// Read one JSON value (RFC 8259).
///
/// Stricter than msgspec, by which Python reads the same, in what may differ between readers: keys given twice,
/// integers beyond 64 bits, more than 64 levels.
///
/// Raises: Code::bundle, with the reason.
inline Json parse_json(const std::string& data) {
  // nlohmann-json takes a zero byte for the end, and skips a byte-order mark; msgspec refuses both.
  if (data.find('\0') != std::string::npos) throw Error(Code::bundle, "it has a zero byte");
  if (data.compare(0, 3, "\xEF\xBB\xBF") == 0) throw Error(Code::bundle, "it begins with a byte-order mark");
  detail::JsonBuilder builder;
  if (!Json::sax_parse(data, &builder)) throw Error(Code::bundle, builder.refusal);
  return std::move(builder.root);
}

/// Write `value` as msgspec.json.encode(value, order="sorted") does: compact, keys sorted, UTF-8, shortest numbers.
inline std::string canonical_json(const Json& value) {
  std::string text;
  detail::write_json(value, text);
  return text;
}

}  // namespace resnet_deploy
