// Runners on an NVIDIA GPU by TensorRT 10, 11 or TensorRT-RTX; compiled where their headers are.
//
// This has never run on a GPU. It compiles, and its logic is tested on a stand-in of TensorRT and of the CUDA runtime.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/cuda.hpp"
#include "resnet_deploy/manifest.hpp"
#include "resnet_deploy/options.hpp"
#include "resnet_deploy/runner.hpp"
#include "resnet_deploy/tensorrt_plan.hpp"

namespace resnet_deploy {

namespace detail {

/// An execution context that follows its own calls from stream to stream; one thread at a time.
///
/// The context's memory for activations is in use until the device has passed a call. A call in another stream waits
/// for the one before it on the device, and nobody on the host.
class TensorRtContext {
 public:
  explicit TensorRtContext(std::shared_ptr<const TensorRtEngine> engine)
      : engine_(std::move(engine)),
        context_(require_tensorrt((**engine_).createExecutionContext(), "createExecutionContext")),
        side_(new_stream()),
        arrived_(new_event()),
        done_(new_event()) {}
  TensorRtContext(const TensorRtContext&) = delete;
  TensorRtContext& operator=(const TensorRtContext&) = delete;

  ~TensorRtContext() {
    cudaEventSynchronize(done_.get());  // a lost device has nothing left to wait for
  }

  const TensorRtEngine& engine() const { return *engine_; }
  cudaStream_t own_stream() const { return side_.get(); }

  /// Run a batch from device memory to device memory in the order of `stream`.
  void run(const void* images, int batch, float* logits, cudaStream_t stream) {
    if (stream != nullptr && stream != cudaStreamLegacy) return enqueue(images, batch, logits, stream);
    // In the legacy default stream, TensorRT would wait for the whole device.
    check_cuda(cudaEventRecord(arrived_.get(), stream), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(side_.get(), arrived_.get(), 0), "cudaStreamWaitEvent");
    enqueue(images, batch, logits, side_.get());
    check_cuda(cudaStreamWaitEvent(stream, done_.get(), 0), "cudaStreamWaitEvent");
  }

 private:
  void enqueue(const void* images, int batch, float* logits, cudaStream_t stream) {
    check_cuda(cudaStreamWaitEvent(stream, done_.get(), 0), "cudaStreamWaitEvent");  // at first, for nothing
    const int profile = engine_->profile_for(batch);
    if (profile != profile_) {
      profile_ = -1;
      require_tensorrt(context_->setOptimizationProfileAsync(profile, stream), "setOptimizationProfileAsync");
      profile_ = profile;
    }
    require_tensorrt(context_->setInputShape(images_tensor, engine_->shape_of(batch)), "setInputShape");
    // TensorRT does not write to inputs; setInputTensorAddress, which says so, is not in every flavour's documents.
    require_tensorrt(context_->setTensorAddress(images_tensor, const_cast<void*>(images)), "setTensorAddress");
    require_tensorrt(context_->setTensorAddress(logits_tensor, logits), "setTensorAddress");
    const bool accepted = context_->enqueueV3(stream);
    check_cuda(cudaEventRecord(done_.get(), stream), "cudaEventRecord");  // a refused call may have begun
    require_tensorrt(accepted, "enqueueV3");
  }

  std::shared_ptr<const TensorRtEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  CudaStream side_;
  CudaEvent arrived_, done_;
  int profile_ = -1;
};

/// Pinned and device memory that one batch passes through on its way from the host to the device and back.
struct TensorRtStaging {
  TensorRtStaging(std::size_t image_bytes, std::size_t logit_bytes)
      : images(new_pinned_memory(image_bytes)),
        logits(new_pinned_memory(logit_bytes)),
        device_images(new_device_memory(image_bytes)),
        device_logits(new_device_memory(logit_bytes)) {}

  PinnedMemory images, logits;
  DeviceMemory device_images, device_logits;
};

}  // namespace detail

/// Runs batches in an execution context of its own, from host memory or from the caller's memory on the GPU.
class TensorRtRunner final : public Runner {
 public:
  TensorRtRunner(std::shared_ptr<const detail::TensorRtEngine> engine, const Manifest& manifest)
      : image_bytes_(manifest.preprocess.nbytes()),
        logit_bytes_(static_cast<std::size_t>(manifest.num_classes) * sizeof(float)),
        most_(static_cast<std::size_t>(manifest.batch_max)),
        context_(std::move(engine)) {}

  ~TensorRtRunner() override {
    cudaStreamSynchronize(context_.own_stream());  // a copy may still be reading what goes now
  }

  void infer(const void* images, int batch, float* logits) override {
    start(images, batch, logits);
    wait();
  }

  void start(const void* images, int batch, float* logits) override {
    const detail::OnDevice guard(context_.engine().device());
    if (staging_ == nullptr) {  // an application whose images are on the GPU needs none
      staging_ = std::make_unique<detail::TensorRtStaging>(most_ * image_bytes_, most_ * logit_bytes_);
    }
    const cudaStream_t stream = context_.own_stream();
    const auto size = static_cast<std::size_t>(batch);
    const detail::TensorRtStaging& staging = *staging_;
    std::memcpy(staging.images.get(), images, size * image_bytes_);
    detail::check_cuda(cudaMemcpyAsync(staging.device_images.get(), staging.images.get(), size * image_bytes_,
                                       cudaMemcpyHostToDevice, stream),
                       "cudaMemcpyAsync");
    context_.run(staging.device_images.get(), batch, static_cast<float*>(staging.device_logits.get()), stream);
    detail::check_cuda(cudaMemcpyAsync(staging.logits.get(), staging.device_logits.get(), size * logit_bytes_,
                                       cudaMemcpyDeviceToHost, stream),
                       "cudaMemcpyAsync");
    answer_ = logits;
    answer_bytes_ = size * logit_bytes_;
  }

  void wait() override {
    const detail::OnDevice guard(context_.engine().device());
    const std::size_t nbytes = std::exchange(answer_bytes_, 0);  // none, if nothing was started
    detail::check_cuda(cudaStreamSynchronize(context_.own_stream()), "cudaStreamSynchronize");
    if (nbytes > 0) std::memcpy(answer_, staging_->logits.get(), nbytes);
  }

  void infer_on(const void* device_images, int batch, float* device_logits, CUstream_st* stream) override {
    const detail::OnDevice guard(context_.engine().device());
    context_.run(device_images, batch, device_logits, stream);
  }

  std::string device() const override { return "CUDA"; }

 private:
  std::size_t image_bytes_, logit_bytes_, most_;
  std::unique_ptr<detail::TensorRtStaging> staging_;
  detail::TensorRtContext context_;  // gone first: it waits for calls that use the memory
  float* answer_ = nullptr;
  std::size_t answer_bytes_ = 0;
};

/// Open the engine of a bundle whose files are verified, on the thread's device, with a context for each request.
///
/// Raises: Code::argument, Code::bundle, Code::unsupported, Code::backend, Code::memory.
inline Runners open_tensorrt(const Bundle& bundle, const EngineOptions& options) {
  if (options.threads != 0) {
    throw Error(Code::argument, std::string(tensorrt_backend) + " engines run on the GPU: there are no threads to set",
                "leave threads at 0");
  }
  const auto engine = std::make_shared<const detail::TensorRtEngine>(bundle);
  Runners runners;
  for (int request = 0; request < options.requests; ++request) {
    runners.push_back(std::make_unique<TensorRtRunner>(engine, bundle.manifest));
  }
  return runners;
}

}  // namespace resnet_deploy
