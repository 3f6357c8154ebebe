// What a bundle requires, held against what is here (bundle.Requirements in Python).
#pragma once

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/machine.hpp"
#include "resnet_deploy/manifest.hpp"

namespace resnet_deploy {

namespace detail {

/// The numbers in a version, or in a compute capability, so that they compare; other parts are left out.
inline std::vector<long long> version_numbers(const std::string& version) {
  std::vector<long long> numbers;
  std::istringstream parts(version);
  for (std::string part; std::getline(parts, part, '.');) {
    if (const long long number = whole_number(part); number >= 0) numbers.push_back(number);
  }
  return numbers;
}

inline std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace detail

/// Whether that version of the library runs the engine.
inline bool takes_version(const Requirements& wanted, const std::string& installed) {
  if (wanted.version.empty() || installed == wanted.version) return true;
  const auto here = detail::version_numbers(installed), built = detail::version_numbers(wanted.version);
  return wanted.later_versions && !here.empty() && !built.empty() && here[0] == built[0] && here >= built;
}

/// Name the field that a GPU of that generation does not meet, and what it asks for; empty if it meets all.
inline std::string misfit_of_gpu(const Requirements& wanted, const std::string& compute_capability) {
  const auto& supported = wanted.compute_capabilities;
  if (!supported.empty() && std::find(supported.begin(), supported.end(), compute_capability) == supported.end()) {
    return "requires.compute_capabilities is " + detail::joined(supported);
  }
  const std::string& least = wanted.least_compute_capability;
  if (!least.empty() && detail::version_numbers(compute_capability) < detail::version_numbers(least)) {
    return "requires.least_compute_capability is " + least;
  }
  return "";
}

/// Hold what a bundle requires of the CPU against this one.
///
/// Raises: Code::bundle, naming the field.
inline void check_cpu(const Requirements& wanted, const std::string& cpuinfo = "/proc/cpuinfo") {
  if (wanted.int8_dot_product && !has_int8_dot_product(cpuinfo)) {
    throw Error(Code::bundle,
                "requires.int8_dot_product is true, and this CPU has none: its INT8 results would saturate",
                "build the engine on this machine; it will then use 7-bit weights");
  }
}

/// Hold the version that a bundle requires of its library against the one that is loaded.
///
/// Raises: Code::bundle, naming the field.
inline void check_version(const Requirements& wanted, const std::string& installed) {
  if (takes_version(wanted, installed)) return;
  const std::string later = wanted.later_versions ? ", or a later one of that major release" : "";
  throw Error(Code::bundle,
              "requires.version is " + wanted.library + " " + wanted.version + later + ", loaded is " + installed,
              "run it with " + wanted.library + " " + wanted.version + ", or build the engine again");
}

}  // namespace resnet_deploy
