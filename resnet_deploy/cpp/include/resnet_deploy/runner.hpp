// The seam between the engine and the libraries that run it.
#pragma once

#include <memory>
#include <string>

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

  /// What it runs on, in the backend's own words, such as "CPU".
  virtual std::string device() const = 0;
};

}  // namespace resnet_deploy
