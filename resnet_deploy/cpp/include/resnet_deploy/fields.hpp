// The fields of a JSON object, taken by name and type, by the rules of msgspec's structs.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "resnet_deploy/json.hpp"

namespace resnet_deploy::detail {

[[noreturn]] inline void refuse(const std::string& reason) { throw Error(Code::bundle, reason); }

/// Every refusal names the field by its whole path, such as card.preprocess.image_size.
class Fields {
 public:
  Fields(const Json& value, std::string path) : value_(value), path_(std::move(path)) {
    if (!value.is_object()) refuse(subject() + " is no object");
  }

  const std::string& path() const noexcept { return path_; }
  std::string path(const char* name) const { return path_.empty() ? name : path_ + '.' + name; }

  /// The value of `name`, or null where the field is absent or JSON's null.
  const Json* find(const char* name) {
    known_.insert(name);
    const auto found = value_.find(name);
    return found == value_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has(const char* name) const { return value_.contains(name); }

  Fields object(const char* name) { return {required(name), path(name)}; }
  std::string text(const char* name) { return as_text(required(name), path(name)); }
  std::int64_t integer(const char* name) { return as_integer(required(name), path(name)); }
  double number(const char* name) { return as_number(required(name), path(name)); }

  // With what an absent field stands for; null is a value, and of another type.
  std::string text(const char* name, const char* fallback) { return has(name) ? text(name) : fallback; }
  std::int64_t integer(const char* name, std::int64_t fallback) { return has(name) ? integer(name) : fallback; }
  double number(const char* name, double fallback) { return has(name) ? number(name) : fallback; }
  bool boolean(const char* name, bool fallback) {
    if (!has(name)) return fallback;
    const Json& value = required(name);
    if (!value.is_boolean()) refuse(path(name) + " is neither true nor false");
    return value.get<bool>();
  }

  /// A text out of `choices`.
  std::string choice(const char* name, const std::vector<std::string>& choices) {
    std::string value = text(name);
    for (const std::string& one : choices) {
      if (value == one) return value;
    }
    refuse(path(name) + " is '" + value.substr(0, 80) + "', which is none of its choices");
  }

  /// Visit the items of an array with their paths; an absent one is empty.
  void each(const char* name, const std::function<void(const Json&, const std::string&)>& visit) {
    if (!has(name)) return;
    const Json& array = required(name);
    if (!array.is_array()) refuse(path(name) + " is no array");
    std::size_t index = 0;
    for (const Json& item : array) visit(item, path(name) + '[' + std::to_string(index++) + ']');
  }

  std::vector<std::string> texts(const char* name) {
    std::vector<std::string> found;
    each(name, [&](const Json& item, const std::string& path) { found.push_back(as_text(item, path)); });
    return found;
  }

  /// Visit texts by name.
  void each_text(const char* name, const std::function<void(const std::string&, const std::string&)>& visit) {
    Fields map = object(name);
    for (const auto& [key, item] : map.value_.get_ref<const Json::object_t&>()) visit(key, as_text(item, path(name)));
  }

  /// Refuse fields that were not asked for.
  void require_no_others() const {
    for (const auto& [name, item] : value_.get_ref<const Json::object_t&>()) {
      if (known_.count(name) == 0) refuse(subject() + " has an unknown field '" + name.substr(0, 80) + "'");
    }
  }

  static double as_number(const Json& value, const std::string& path) {
    if (!value.is_number()) refuse(path + " is no number");
    return value.get<double>();
  }

 private:
  const Json& required(const char* name) {
    known_.insert(name);
    const auto found = value_.find(name);
    if (found == value_.end()) refuse(path(name) + " is missing");
    return *found;
  }

  static std::string as_text(const Json& value, const std::string& path) {
    if (!value.is_string()) refuse(path + " is no text");
    return value.get<std::string>();
  }

  static std::int64_t as_integer(const Json& value, const std::string& path) {
    if (!value.is_number_integer()) refuse(path + " is no integer");
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      refuse(path + " is out of range");
    }
    return value.get<std::int64_t>();
  }

  std::string subject() const { return path_.empty() ? "it" : path_; }

  const Json& value_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace resnet_deploy::detail
