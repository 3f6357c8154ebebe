// The backends of this build, by name; the only place that knows which there are.
//
// RESNET_DEPLOY_WITH_OPENVINO and RESNET_DEPLOY_WITH_TENSORRT are 1 or 0, set by CMake for all of a program. Without
// them, a backend is in where its headers are found; all files of a program must then find the same.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/options.hpp"
#include "resnet_deploy/requirements.hpp"
#include "resnet_deploy/runner.hpp"

#ifndef RESNET_DEPLOY_WITH_OPENVINO
#if __has_include(<openvino/openvino.hpp>)
#define RESNET_DEPLOY_WITH_OPENVINO 1
#else
#define RESNET_DEPLOY_WITH_OPENVINO 0
#endif
#endif

#ifndef RESNET_DEPLOY_WITH_TENSORRT
#if __has_include(<NvInfer.h>) && __has_include(<cuda_runtime_api.h>)
#define RESNET_DEPLOY_WITH_TENSORRT 1
#else
#define RESNET_DEPLOY_WITH_TENSORRT 0
#endif
#endif

#if RESNET_DEPLOY_WITH_OPENVINO
#include "resnet_deploy/openvino.hpp"
#endif
#if RESNET_DEPLOY_WITH_TENSORRT
#include "resnet_deploy/tensorrt.hpp"
#endif

namespace resnet_deploy {

/// The backends whose bundles this build runs.
inline std::vector<std::string> backends() {
  std::vector<std::string> names;
#if RESNET_DEPLOY_WITH_OPENVINO
  names.emplace_back("openvino");
#endif
#if RESNET_DEPLOY_WITH_TENSORRT
  names.emplace_back(tensorrt_backend);
#endif
  return names;
}

namespace detail {

/// Hold a bundle's backend against those of this build.
///
/// Raises: Code::unsupported.
inline void check_backend(const std::string& backend) {
  const std::vector<std::string> known = backends();
  if (std::find(known.begin(), known.end(), backend) != known.end()) return;
  const std::string list = known.empty() ? "none" : joined(known);
  if (backend == "onnxruntime") {  // OpenVINO would take the graph, but the golden answers are another library's
    throw Error(Code::unsupported, "this build runs no onnxruntime engines (it has: " + list + ")",
                "build the engine with --backend openvino");
  }
  throw Error(Code::unsupported, "this build runs no " + backend + " engines (it has: " + list + ")",
              "build the engine for one of these, or compile with the headers and library of " + backend);
}

/// Open the engine of a bundle whose backend `check_backend` has let through.
inline Runners open_runners(const Bundle& bundle, const EngineOptions& options) {
#if RESNET_DEPLOY_WITH_OPENVINO
  if (bundle.manifest.backend == "openvino") return open_openvino(bundle, options);
#endif
#if RESNET_DEPLOY_WITH_TENSORRT
  if (bundle.manifest.backend == tensorrt_backend) return open_tensorrt(bundle, options);
#endif
  (void)options;
  throw Error(Code::internal, "no way to open " + bundle.manifest.backend);
}

}  // namespace detail

}  // namespace resnet_deploy
