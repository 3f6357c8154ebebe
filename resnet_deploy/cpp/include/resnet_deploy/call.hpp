// One call's batches: split from its images, begun on the runners that it leases.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "resnet_deploy/lease.hpp"
#include "resnet_deploy/manifest.hpp"

namespace resnet_deploy::detail {

/// Fill up a batch of `size` images to `least` with copies of its last one; there must be room for them.
inline void fill_up(unsigned char* images, std::size_t size, std::size_t least, std::size_t image_bytes) {
  for (std::size_t copy = size; copy < least; ++copy) {
    std::memcpy(images + copy * image_bytes, images + (size - 1) * image_bytes, image_bytes);
  }
}

/// The batches of one call, begun in the order of its images. What they read must stay until this is gone, or finished.
class Call {
 public:
  /// Lease as many runners as are free, at most one per batch.
  ///
  /// logits: count * num_classes floats.
  Call(Pool& pool, const Manifest& manifest, std::size_t count, float* logits)
      : least_(static_cast<std::size_t>(manifest.batch_min)),
        classes_(static_cast<std::size_t>(manifest.num_classes)),
        logits_(logits),
        lease_(pool, (count + manifest.batch_max - 1) / manifest.batch_max) {}

  /// Begin a batch of `size` images, filled up to the engine's least; wait first for the runner whose turn it is.
  void start(const unsigned char* images, std::size_t size) {
    float* out = logits_;
    if (size < least_) {
      rest_.resize(least_ * classes_);
      rest_size_ = size;
      out = rest_.data();
    }
    logits_ += size * classes_;
    lease_.start(images, static_cast<int>(std::max(size, least_)), out);
  }

  /// Wait for all; drop the logits of what was filled up.
  void finish() {
    lease_.finish();
    std::copy_n(rest_.begin(), rest_size_ * classes_, logits_ - rest_size_ * classes_);
  }

  std::size_t runners() const noexcept { return lease_.size(); }

 private:
  std::size_t least_, classes_;
  float* logits_;  // of the next batch
  std::vector<float> rest_;
  std::size_t rest_size_ = 0;  // images of the last batch, where it was filled up
  Lease lease_;  // last, for it is to go first: it waits for what writes to the rest
};

}  // namespace resnet_deploy::detail
