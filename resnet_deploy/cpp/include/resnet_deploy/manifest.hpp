// What an engine bundle says of itself (bundle.Manifest in Python), as far as running it needs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "resnet_deploy/contract.hpp"

namespace resnet_deploy {

/// What a machine must have to run the engine (bundle.Requirements in Python).
struct Requirements {
  std::string library;
  std::string version;  ///< Empty where any supported one will do.
  bool later_versions = false;
  std::vector<std::string> compute_capabilities;
  std::string least_compute_capability;
  bool int8_dot_product = false;
};

struct Manifest {
  std::string name;
  std::string architecture;
  int num_classes = 0;
  std::vector<std::string> labels;  ///< One per class, or none.
  Preprocess preprocess;
  std::string backend;    ///< Such as "openvino", "tensorrt", "tensorrt-rtx".
  std::string precision;  ///< Such as "int8".
  int batch_min = 1, batch_opt = 8, batch_max = 64;
  bool strip_weights = false;                ///< Whether the plan lacks its weights (spec.trt.strip_weights).
  std::string engine;                        ///< File name of the engine inside the bundle.
  std::map<std::string, std::string> files;  ///< SHA-256 of every other file in the bundle, by name.
  Requirements requires_;
};

}  // namespace resnet_deploy
