// The seam between the engine and the libraries that run it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "resnet_deploy/errors.hpp"

struct CUstream_st;  // CUDA's; cudaStream_t is a pointer to it

namespace resnet_deploy {

/// One loaded engine. Owned by one thread at a time, unless a backend says otherwise.
class Runner {
 public:
  virtual ~Runner() = default;

  /// Run one batch from host memory to host memory.
  ///
  /// images: batch * Preprocess::nbytes() bytes, contiguous; read during the call only.
  /// logits: batch * num_classes floats; written by the time the call returns.
  /// batch: within the manifest's range.
  virtual void infer(const void* images, int batch, float* logits) = 0;

  /// Begin what `infer` does; both memories must stay as they are until `wait` returns.
  ///
  /// Of backends that return before the batch is done, which then may run several at once; others do all of it here.
  virtual void start(const void* images, int batch, float* logits) { infer(images, batch, logits); }

  /// Wait until what was started is done.
  virtual void wait() {}

  /// Run one batch that is on the GPU, in the order of `stream`, without a copy; return before it is done.
  ///
  /// Both memories belong to the caller and must stay until the stream has passed this call.
  virtual void infer_on(const void* device_images, int batch, float* device_logits, CUstream_st* stream) {
    (void)device_images, (void)batch, (void)device_logits, (void)stream;
    throw Error(Code::argument, "the images are on a GPU, and this engine runs on " + device(),
                "copy them to the host, or build with --backend tensorrt");
  }

  /// What it runs on, in the backend's own words, such as "CPU".
  virtual std::string device() const = 0;
};

/// Runners of one engine, each for one call at a time.
using Runners = std::vector<std::unique_ptr<Runner>>;

}  // namespace resnet_deploy
