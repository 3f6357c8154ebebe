// What a bundle requires, held against a machine (engine.check_fits in Python).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "resnet_deploy/cpu.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/manifest.hpp"

namespace resnet_deploy {

namespace detail {

/// The numbers of a version or a compute capability, by which they are compared; parts that are none are left out.
inline std::vector<std::uint64_t> version_numbers(const std::string& version) {
  std::vector<std::uint64_t> numbers;
  for (std::size_t start = 0; start <= version.size();) {
    const std::size_t end = std::min(version.find('.', start), version.size());
    const std::string part = version.substr(start, end - start);
    const bool is_number = !part.empty() && part.size() < 19 && part.find_first_not_of("0123456789") == std::string::npos;
    if (is_number) numbers.push_back(std::stoull(part));
    start = end + 1;
  }
  return numbers;
}

}  // namespace detail

/// Whether that version of its library runs the engine (Requirements.takes_version).
inline bool takes_version(const Requirements& wanted, const std::string& installed) {
  if (wanted.version.empty() || installed == wanted.version) return true;
  const auto here = detail::version_numbers(installed), built = detail::version_numbers(wanted.version);
  const bool same_major = here.empty() ? built.empty() : !built.empty() && here.front() == built.front();
  return wanted.later_versions && same_major && here >= built;
}

/// Hold what the engine asks of the CPU. Throws Error (bundle) naming the field.
inline void check_cpu(const Manifest& manifest, bool has_dot_product = has_int8_dot_product()) {
  if (manifest.requires_.int8_dot_product && !has_dot_product) {
    throw Error(Code::bundle,
                manifest.name + ": requires.int8_dot_product is true, and this CPU has none: its INT8 results would saturate",
                "build the engine on this machine; it will then use 7-bit weights");
  }
}

/// Hold what the engine asks of its library. Throws Error (bundle) naming the field.
inline void check_library(const Manifest& manifest, const std::string& installed) {
  const Requirements& wanted = manifest.requires_;
  if (takes_version(wanted, installed)) return;
  const std::string later = wanted.later_versions ? ", or a later one of that major release" : "";
  throw Error(Code::bundle,
              manifest.name + ": requires.version is " + wanted.library + ' ' + wanted.version + later + ", here is " + installed,
              "link with that version, or build the engine again");
}

/// Hold what the engine asks of the GPU, such as "8.9". Throws Error (bundle) naming the field.
inline void check_gpu(const Manifest& manifest, const std::string& compute_capability) {
  const Requirements& wanted = manifest.requires_;
  const auto& supported = wanted.compute_capabilities;
  std::string unmet;
  if (!supported.empty() && std::find(supported.begin(), supported.end(), compute_capability) == supported.end()) {
    for (const std::string& one : supported) unmet += (unmet.empty() ? "requires.compute_capabilities is " : ", ") + one;
  } else if (!wanted.least_compute_capability.empty() &&
             detail::version_numbers(compute_capability) < detail::version_numbers(wanted.least_compute_capability)) {
    unmet = "requires.least_compute_capability is " + wanted.least_compute_capability;
  }
  if (unmet.empty()) return;
  throw Error(Code::bundle, manifest.name + ": " + unmet + ", this GPU has " + compute_capability, "build the engine for this GPU");
}

}  // namespace resnet_deploy
