// TensorRT 10, 11 and TensorRT-RTX: what stands between a bundle and an engine, and the engine (runners/trt_checks.py
// and runners/trt_engine.py in Python). Which flavour it is, the SDK's headers say.
#pragma once

#include <NvInfer.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/cuda.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/manifest.hpp"
#include "resnet_deploy/requirements.hpp"

#if NV_TENSORRT_MAJOR < 10 && !defined(TRT_MAJOR_RTX)
#error "resnet_deploy needs TensorRT 10 or later, or TensorRT-RTX"
#endif

namespace resnet_deploy {

#ifdef TRT_MAJOR_RTX
inline constexpr const char* tensorrt_backend = "tensorrt-rtx";
#else
inline constexpr const char* tensorrt_backend = "tensorrt";
#endif

namespace detail {

inline constexpr const char* images_tensor = "images";
inline constexpr const char* logits_tensor = "logits";

/// Keeps the last error. TensorRT may call it from any of its threads.
class TensorRtLog final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      last_error_ = message;
    } catch (...) {  // NOLINT: no memory for a message is no reason to end the program
    }
  }

  /// The first line of the last error.
  std::string said() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_error_.empty() ? "it gave no reason" : last_error_.substr(0, last_error_.find('\n'));
  }

 private:
  mutable std::mutex mutex_;
  std::string last_error_;
};

/// One for the process, never destroyed: TensorRT makes the first one it sees its global logger, and does not own it.
inline TensorRtLog& tensorrt_log() {
  static TensorRtLog& log = *new TensorRtLog;
  return log;
}

/// Turn TensorRT's false and null into an error.
///
/// Raises: Code::backend, with the last error that TensorRT logged.
template <typename Done>
Done require_tensorrt(Done done, const std::string& call) {
  if (done) return done;
  throw Error(Code::backend, std::string(tensorrt_backend) + ": " + call + " failed: " + tensorrt_log().said());
}

/// Version of the library that is loaded, such as "10.16.1.11", as its Python bindings spell it.
inline std::string tensorrt_version() {
  std::string version;
  for (const int part : {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(),
                         getInferLibBuildVersion()}) {
    version += (version.empty() ? "" : ".") + std::to_string(part);
  }
  return version;
}

/// Ask TensorRT-RTX whether the plan's header suits this machine; other flavours cannot say.
///
/// Raises: Code::bundle, naming what does not suit.
inline void check_plan_header(nvinfer1::IRuntime& runtime, const std::string& plan, const std::string& path) {
#ifdef TRT_MAJOR_RTX
  using Diagnostic = nvinfer1::EngineInvalidityDiagnostics;
  static constexpr std::array<std::pair<Diagnostic, const char*>, 7> names{{
      {Diagnostic::kVERSION_MISMATCH, "VERSION_MISMATCH"},
      {Diagnostic::kUNSUPPORTED_CC, "UNSUPPORTED_CC"},
      {Diagnostic::kOLD_CUDA_DRIVER, "OLD_CUDA_DRIVER"},
      {Diagnostic::kOLD_CUDA_RUNTIME, "OLD_CUDA_RUNTIME"},
      {Diagnostic::kINSUFFICIENT_GPU_MEMORY, "INSUFFICIENT_GPU_MEMORY"},
      {Diagnostic::kMALFORMED_ENGINE, "MALFORMED_ENGINE"},
      {Diagnostic::kCUDA_ERROR, "CUDA_ERROR"},
  }};
  const auto size = std::min(static_cast<std::int64_t>(plan.size()), std::int64_t{runtime.getEngineHeaderSize()});
  std::uint64_t diagnostics = 0;
  if (runtime.getEngineValidity(plan.data(), size, &diagnostics) != nvinfer1::EngineValidity::kINVALID) return;
  std::vector<std::string> reasons;
  for (const auto& [diagnostic, name] : names) {
    if ((diagnostics & static_cast<std::uint64_t>(diagnostic)) != 0) reasons.emplace_back(name);
  }
  throw Error(Code::bundle,
              path + ": tensorrt-rtx says that the plan does not run here: " +
                  (reasons.empty() ? "no reason given" : joined(reasons)),
              "build the engine again");
#else
  (void)runtime, (void)plan, (void)path;
#endif
}

/// A deserialized engine, which any number of contexts share; it does not change once made.
class TensorRtEngine {
 public:
  /// Batch sizes of one optimization profile.
  struct Profile {
    int least, opt, most;
  };

  /// Load the plan of a bundle whose files are verified onto the thread's device.
  ///
  /// Raises: Code::bundle, naming the field that does not suit; Code::unsupported; Code::backend.
  explicit TensorRtEngine(const Bundle& bundle) : device_(current_device()), path_(bundle.path) {
    const Manifest& manifest = bundle.manifest;
    check_version(manifest.requires_, tensorrt_version());
    const std::string generation = compute_capability(device_);
    if (const std::string misfit = misfit_of_gpu(manifest.requires_, generation); !misfit.empty()) {
      throw Error(Code::bundle, path_ + ": " + misfit + ", this GPU has " + generation,
                  "build the engine for this GPU");
    }
    if (manifest.strip_weights) {  // it would load, and compute with whatever is there
      throw Error(Code::unsupported, path_ + ": the plan was stripped of its weights, and only Python puts them back",
                  "build it without --strip-weights");
    }
    const std::string plan = bundle.read(manifest.engine);
    runtime_.reset(require_tensorrt(nvinfer1::createInferRuntime(tensorrt_log()), "createInferRuntime"));
    check_plan_header(*runtime_, plan, path_);
    // Plans that later versions may run hold code of the host's.
    if (manifest.requires_.later_versions) runtime_->setEngineHostCodeAllowed(true);
    engine_.reset(require_tensorrt(runtime_->deserializeCudaEngine(plan.data(), plan.size()), "deserializeCudaEngine"));
    check_tensors(manifest);
    read_profiles(manifest);
  }

  int device() const { return device_; }
  nvinfer1::ICudaEngine& operator*() const { return *engine_; }

  /// Shape of one batch of images.
  nvinfer1::Dims shape_of(int batch) const {
    nvinfer1::Dims shape = engine_->getTensorShape(images_tensor);
    shape.d[0] = batch;
    return shape;
  }

  /// Choose the optimization profile that holds `batch` and is tuned for a size nearest to it.
  ///
  /// Raises: Code::argument, if none holds it.
  int profile_for(int batch) const {
    int chosen = -1;
    for (int index = 0; index < static_cast<int>(profiles_.size()); ++index) {
      const Profile& profile = profiles_[index];
      const bool fits = profile.least <= batch && batch <= profile.most;
      if (fits && (chosen < 0 || std::abs(profile.opt - batch) < std::abs(profiles_[chosen].opt - batch))) {
        chosen = index;
      }
    }
    if (chosen >= 0) return chosen;
    throw Error(Code::argument, "batch of " + std::to_string(batch) + ", and no profile of the plan holds it",
                "build with another --batch");
  }

 private:
  /// Hold the plan's tensors against the manifest: what is copied in and out has the sizes that the manifest says.
  void check_tensors(const Manifest& manifest) const {
    const bool is_uint8 = manifest.preprocess.dtype == Dtype::uint8;
    const auto input = is_uint8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT;
    const bool fits = engine_->getNbIOTensors() == 2 && has_tensor(images_tensor) && has_tensor(logits_tensor) &&
                      engine_->getTensorDataType(images_tensor) == input &&
                      engine_->getTensorDataType(logits_tensor) == nvinfer1::DataType::kFLOAT &&
                      values_in(images_tensor) == static_cast<std::int64_t>(manifest.preprocess.size()) &&
                      values_in(logits_tensor) == manifest.num_classes;
    if (!fits) {
      throw Error(Code::bundle, path_ + ": the plan's tensors are not those that the manifest describes",
                  "build the engine from what `resnet-deploy export` wrote");
    }
  }

  bool has_tensor(const std::string& name) const {
    return name == engine_->getIOTensorName(0) || name == engine_->getIOTensorName(1);
  }

  /// Values of one image, or of its logits.
  std::int64_t values_in(const char* name) const {
    const nvinfer1::Dims shape = engine_->getTensorShape(name);
    std::int64_t values = 1;
    for (int axis = 1; axis < shape.nbDims; ++axis) values *= shape.d[axis];
    return values;
  }

  /// Read the plan's profiles, and hold the batch sizes that the manifest promises against them.
  void read_profiles(const Manifest& manifest) {
    using Selector = nvinfer1::OptProfileSelector;
    const auto batch = [this](int index, Selector which) {
      return static_cast<int>(engine_->getProfileShape(images_tensor, index, which).d[0]);
    };
    for (int index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
      profiles_.push_back({batch(index, Selector::kMIN), batch(index, Selector::kOPT), batch(index, Selector::kMAX)});
    }
    for (const int size : {manifest.batch_min, manifest.batch_max}) {
      try {
        profile_for(size);
      } catch (const Error&) {
        throw Error(Code::bundle,
                    path_ + ": spec.batch has " + std::to_string(size) + ", and no profile of the plan holds it",
                    "build the engine again");
      }
    }
  }

  int device_;
  std::string path_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;  // gone before the runtime
  std::vector<Profile> profiles_;
};

}  // namespace detail

}  // namespace resnet_deploy
