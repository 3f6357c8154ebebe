// A stand-in of TensorRT's runtime for tests, of the names that we use and no others; with STAND_IN_RTX, of
// TensorRT-RTX's.
//
// Names and signatures are those of TensorRT 10's headers; nothing else is. Its engine adds up the values of each
// image: logit c is (c + 1) times their sum. A plan is text: "stand-in TYPE SIDE CLASSES , LEAST OPT MOST , ..."
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#ifdef STAND_IN_RTX
#define TRT_MAJOR_RTX 1
#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX
inline int32_t getInferLibMajorVersion() noexcept { return 1; }
inline int32_t getInferLibMinorVersion() noexcept { return 7; }
#else
#define NV_TENSORRT_MAJOR 10
inline int32_t getInferLibMajorVersion() noexcept { return 10; }
inline int32_t getInferLibMinorVersion() noexcept { return 16; }
#endif
inline int32_t getInferLibPatchVersion() noexcept { return 1; }
inline int32_t getInferLibBuildVersion() noexcept { return 11; }

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kUINT8 = 5 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
class Dims {
 public:
  int32_t nbDims;
  int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

struct Network {
  ILogger* logger;
  DataType type = DataType::kUINT8;
  int64_t side = 0, classes = 0;
  std::vector<std::vector<int64_t>> profiles;
};

/// Log a call; if it is to fail, say why to the logger.
inline bool called(ILogger& logger, const std::string& name) {
  if (stand_in::called(name)) return true;
  logger.log(ILogger::Severity::kERROR, (name + " was told to fail\nand goes on at length").c_str());
  logger.log(ILogger::Severity::kWARNING, "a warning is no reason");
  return false;
}

class IExecutionContext {
 public:
  explicit IExecutionContext(const Network& network) : network_(network) { ++stand_in::world().live["contexts"]; }
  virtual ~IExecutionContext() noexcept {
    if (*done_ != put_) stand_in::world().violations.emplace_back("a context went while its calls were under way");
    --stand_in::world().live["contexts"];
  }

  bool setOptimizationProfileAsync(int32_t index, cudaStream_t) noexcept {
    if (!called(*network_.logger, "setOptimizationProfileAsync")) return false;
    profile_ = index;
    batch_ = 0;
    return true;
  }
  bool setInputShape(const char* name, const Dims& dims) noexcept {
    if (!called(*network_.logger, "setInputShape") || std::string(name) != "images" || profile_ < 0) return false;
    const auto& profile = network_.profiles[static_cast<std::size_t>(profile_)];
    batch_ = dims.d[0];
    return dims.nbDims == 4 && profile[0] <= batch_ && batch_ <= profile[2];
  }
  bool setTensorAddress(const char* name, void* data) noexcept {
    if (!called(*network_.logger, "setTensorAddress")) return false;
    (std::string(name) == "images" ? images_ : logits_) = data;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept {
    if (!called(*network_.logger, "enqueueV3") || batch_ == 0) return false;
    stand_in::World& world = stand_in::world();
    const bool is_float = network_.type == DataType::kFLOAT;
    const auto values = static_cast<std::size_t>(network_.side * network_.side * 3);
    const auto images = static_cast<std::size_t>(batch_), classes = static_cast<std::size_t>(network_.classes);
    if (stream == nullptr || stream == cudaStreamLegacy) world.violations.emplace_back("the legacy stream");
    else if (stream->device != world.device) world.violations.emplace_back("the thread is on another device");
    if (!stand_in::is_on_device(images_, images * values * (is_float ? 4 : 1))) world.violations.emplace_back("images");
    if (!stand_in::is_on_device(logits_, images * classes * 4)) world.violations.emplace_back("logits");
    const auto order = put_++;
    stand_in::put(stream, [=, done = done_, from = images_, to = static_cast<float*>(logits_)] {
      if ((*done)++ != order) stand_in::world().violations.emplace_back("calls of one context out of order");
      for (std::size_t image = 0; image < images; ++image) {
        float sum = 0;
        for (std::size_t value = 0; value < values; ++value) {
          const std::size_t at = image * values + value;
          sum += is_float ? static_cast<const float*>(from)[at] : static_cast<const unsigned char*>(from)[at];
        }
        for (std::size_t c = 0; c < classes; ++c) to[image * classes + c] = static_cast<float>(c + 1) * sum;
      }
    });
    return true;
  }

 private:
  Network network_;
  int32_t profile_ = -1;
  int64_t batch_ = 0;
  void *images_ = nullptr, *logits_ = nullptr;
  int put_ = 0;
  std::shared_ptr<int> done_ = std::make_shared<int>(0);
};

class ICudaEngine {
 public:
  explicit ICudaEngine(Network network) : network_(std::move(network)) { ++stand_in::world().live["engines"]; }
  virtual ~ICudaEngine() noexcept {
    if (stand_in::world().live["contexts"] != 0) stand_in::world().violations.emplace_back("contexts outlived the engine");
    --stand_in::world().live["engines"];
  }

  int32_t getNbIOTensors() const noexcept { return 2; }
  const char* getIOTensorName(int32_t index) const noexcept { return index == 0 ? "images" : "logits"; }
  DataType getTensorDataType(const char* name) const noexcept {
    return std::string(name) == "images" ? network_.type : DataType::kFLOAT;
  }
  Dims getTensorShape(const char* name) const noexcept {
    const int64_t side = network_.side;
    if (std::string(name) == "logits") return {2, {-1, network_.classes}};
    return network_.type == DataType::kFLOAT ? Dims{4, {-1, 3, side, side}} : Dims{4, {-1, side, side, 3}};
  }
  int32_t getNbOptimizationProfiles() const noexcept { return static_cast<int32_t>(network_.profiles.size()); }
  Dims getProfileShape(const char*, int32_t index, OptProfileSelector which) const noexcept {
    Dims dims = getTensorShape("images");
    dims.d[0] = network_.profiles[static_cast<std::size_t>(index)][static_cast<std::size_t>(which)];
    return dims;
  }
  IExecutionContext* createExecutionContext() noexcept {
    return called(*network_.logger, "createExecutionContext") ? new IExecutionContext(network_) : nullptr;
  }

 private:
  Network network_;
};

#ifdef STAND_IN_RTX
enum class EngineValidity : int32_t { kVALID = 0, kSUBOPTIMAL = 1, kINVALID = 2 };
enum class EngineInvalidityDiagnostics : uint64_t {
  kVERSION_MISMATCH = 1, kUNSUPPORTED_CC = 2, kOLD_CUDA_DRIVER = 4, kOLD_CUDA_RUNTIME = 8,
  kINSUFFICIENT_GPU_MEMORY = 16, kMALFORMED_ENGINE = 32, kCUDA_ERROR = 64
};
#endif

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) { ++stand_in::world().live["runtimes"]; }
  virtual ~IRuntime() noexcept {
    if (stand_in::world().live["engines"] != 0) stand_in::world().violations.emplace_back("an engine outlived its runtime");
    --stand_in::world().live["runtimes"];
  }
  void setEngineHostCodeAllowed(bool) noexcept { stand_in::called("setEngineHostCodeAllowed"); }
  ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept {
    if (!called(logger_, "deserializeCudaEngine")) return nullptr;
    std::istringstream words(std::string(static_cast<const char*>(blob), size));
    std::string magic, type, comma;
    Network network{&logger_, DataType::kUINT8, 0, 0, {}};
    words >> magic >> type >> network.side >> network.classes;
    if (magic != "stand-in") {
      logger_.log(ILogger::Severity::kERROR, "this is no plan");
      return nullptr;
    }
    if (type == "float32") network.type = DataType::kFLOAT;
    for (int64_t least = 0, opt = 0, most = 0; words >> comma >> least >> opt >> most;) {
      network.profiles.push_back({least, opt, most});
    }
    return new ICudaEngine(network);
  }
#ifdef STAND_IN_RTX
  int64_t getEngineHeaderSize() const noexcept { return 64; }
  EngineValidity getEngineValidity(const void* blob, int64_t size, uint64_t* diagnostics) const noexcept {
    stand_in::called("getEngineValidity");
    const std::string header(static_cast<const char*>(blob), static_cast<std::size_t>(size));
    if (header.find("stand-in") == 0) return EngineValidity::kVALID;
    *diagnostics = 2 | 4;
    return EngineValidity::kINVALID;
  }
#endif

 private:
  ILogger& logger_;
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept {
  return called(logger, "createInferRuntime") ? new IRuntime(logger) : nullptr;
}

}  // namespace nvinfer1
