// The engine as an application holds it: images in, logits or labels out (engine.py in Python).
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "resnet_deploy/backends.hpp"
#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/call.hpp"
#include "resnet_deploy/classify.hpp"
#include "resnet_deploy/contract.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/lease.hpp"
#include "resnet_deploy/manifest.hpp"
#include "resnet_deploy/options.hpp"
#include "resnet_deploy/preprocess.hpp"
#include "resnet_deploy/requirements.hpp"
#include "resnet_deploy/runner.hpp"

namespace resnet_deploy {

/// A loaded engine bundle.
///
/// Calls from several threads are safe. With one request they take turns; with several, each call has those that are
/// free when it comes, and waits while none is. Moving and destroying are for one thread, while no call is under way;
/// of one that was moved from, nothing may be called but the destructor and assignment.
class Engine {
 public:
  /// Open a bundle that `resnet-deploy build` made.
  ///
  /// Everything is checked before a byte reaches the backend: the manifest and its digest, what it requires of this
  /// machine, and the digest of every file.
  ///
  /// Raises:
  ///   Code::argument: An option makes no sense.
  ///   Code::file: There is no bundle, or it cannot be read.
  ///   Code::bundle: It is damaged, was altered, or does not fit this machine; the message names the field.
  ///   Code::unsupported: This build has not its backend.
  ///   Code::backend: The backend refuses the engine.
  static Engine open(const std::string& path, const EngineOptions& options = {});

  /// Run `runners`, at least one, as the engine that `manifest` describes.
  Engine(Manifest manifest, Runners runners)
      : manifest_(std::make_unique<Manifest>(std::move(manifest))),
        pool_(std::make_unique<detail::Pool>(std::move(runners))) {}

  const Manifest& manifest() const { return *manifest_; }

  /// What it runs on, in the backend's own words, such as "CPU".
  std::string device() const { return pool_->first().device(); }

  /// Compute logits of prepared images, any number of them.
  ///
  /// They are split by the largest batch that the engine takes; a remainder below the least is filled up with copies of
  /// the last image, whose logits are dropped.
  ///
  /// images: count * Preprocess::nbytes() bytes, contiguous: (N, H, W, 3) uint8 or (N, 3, H, W) float.
  /// logits: count * num_classes floats.
  /// Raises: Code::argument, Code::backend.
  void infer(const void* images, int count, float* logits) const;

  /// Preprocess pictures by the engine's input contract, and compute their logits.
  ///
  /// Each batch is begun when it is prepared, and the next one prepared meanwhile, in the calling thread.
  ///
  /// logits: pictures.size() * num_classes floats.
  /// Raises: Code::argument, Code::data, Code::backend.
  void infer(const std::vector<Pixels>& pictures, float* logits) const;

  /// Name the `top` best classes of each picture, best first (fewer where the model has fewer).
  std::vector<std::vector<Prediction>> classify(const std::vector<Pixels>& pictures, int top = 5) const;

  /// Run one batch that is on the GPU, in the order of the caller's stream, without a copy; return before it is done.
  ///
  /// device_images, device_logits: As in `infer`, on the GPU; they must stay until the stream has passed this call.
  /// batch: Within the engine's range; it is not split.
  /// stream: A cudaStream_t of the GPU that the engine runs on; null is the default stream.
  /// Raises: Code::argument (also where the engine runs on a CPU), Code::backend.
  void infer_on(const void* device_images, int batch, float* device_logits, CUstream_st* stream) const;

 private:
  std::unique_ptr<Manifest> manifest_;
  std::unique_ptr<detail::Pool> pool_;
};

inline Engine Engine::open(const std::string& path, const EngineOptions& options) {
  check_options(options);
  Bundle bundle = open_bundle(path);
  detail::check_backend(bundle.manifest.backend);
  check_cpu(bundle.manifest.requires_);
  bundle.verify_files();
  Runners runners = detail::open_runners(bundle, options);
  return Engine(std::move(bundle.manifest), std::move(runners));
}

inline void Engine::infer(const void* images, int count, float* logits) const {
  if (count < 0) throw Error(Code::argument, std::to_string(count) + " images", "give none or more");
  if (count == 0) return;
  if (images == nullptr || logits == nullptr) throw Error(Code::argument, "no memory for images or logits");
  const auto least = static_cast<std::size_t>(manifest_->batch_min);
  const auto most = static_cast<std::size_t>(manifest_->batch_max), all = static_cast<std::size_t>(count);
  const std::size_t image_bytes = manifest_->preprocess.nbytes();
  const auto* bytes = static_cast<const unsigned char*>(images);
  std::vector<unsigned char> rest;  // a remainder that is filled up
  detail::Call call(*pool_, *manifest_, all, logits);
  for (std::size_t begin = 0; begin < all; begin += most) {
    const std::size_t size = std::min(most, all - begin);
    const unsigned char* first = bytes + begin * image_bytes;
    if (size < least) {
      rest.resize(least * image_bytes);
      std::copy_n(first, size * image_bytes, rest.begin());
      detail::fill_up(rest.data(), size, least, image_bytes);
      first = rest.data();
    }
    call.start(first, size);
  }
  call.finish();
}

inline void Engine::infer(const std::vector<Pixels>& pictures, float* logits) const {
  if (pictures.size() > 0x7fffffff) throw Error(Code::argument, "too many pictures", "give fewer at once");
  if (pictures.empty()) return;
  if (logits == nullptr) throw Error(Code::argument, "no memory for logits");
  const auto least = static_cast<std::size_t>(manifest_->batch_min);
  const auto most = static_cast<std::size_t>(manifest_->batch_max);
  const std::size_t image_bytes = manifest_->preprocess.nbytes();
  Preprocessor preprocessor(manifest_->preprocess);
  const auto size_at = [&](std::size_t begin) { return std::min(most, pictures.size() - begin); };
  const auto prepare = [&](std::size_t begin, unsigned char* batch) {
    for (std::size_t index = 0; index < size_at(begin); ++index) {
      preprocessor(pictures[begin + index], batch + index * image_bytes);
    }
    detail::fill_up(batch, size_at(begin), least, image_bytes);
  };
  // In turns, one more than runners: a batch is prepared while all of them are busy, and by then the one that read its
  // memory last has been waited for, since it has begun the batch before. Not vectors, which would be cleared first.
  std::vector<std::unique_ptr<unsigned char[]>> batches;
  const auto add_batch = [&] {
    batches.emplace_back(new unsigned char[std::max(least, std::min(most, pictures.size())) * image_bytes]);
  };
  add_batch();
  prepare(0, batches.front().get());  // before any runner is taken from other callers
  detail::Call call(*pool_, *manifest_, pictures.size(), logits);
  std::size_t turn = 0;
  call.start(batches.front().get(), size_at(0));
  for (std::size_t begin = most; begin < pictures.size(); begin += most) {
    turn = (turn + 1) % (call.runners() + 1);
    if (turn == batches.size()) add_batch();
    prepare(begin, batches[turn].get());
    call.start(batches[turn].get(), size_at(begin));
  }
  call.finish();
}

inline std::vector<std::vector<Prediction>> Engine::classify(const std::vector<Pixels>& pictures, int top) const {
  if (top < 1) throw Error(Code::argument, "top " + std::to_string(top) + " is not positive", "ask for one or more");
  const int classes = manifest_->num_classes;
  std::vector<float> logits(pictures.size() * classes);
  infer(pictures, logits.data());
  std::vector<std::vector<Prediction>> all(pictures.size());
  for (std::size_t picture = 0; picture < pictures.size(); ++picture) {
    const float* row = logits.data() + picture * classes;
    const std::vector<double> probabilities = softmax(row, classes);
    for (const int index : best_classes(row, classes, top)) {
      const auto& labels = manifest_->labels;
      all[picture].push_back(
          {index, labels.empty() ? "class " + std::to_string(index) : labels[index], probabilities[index]});
    }
  }
  return all;
}

inline void Engine::infer_on(const void* device_images, int batch, float* device_logits, CUstream_st* stream) const {
  if (batch < manifest_->batch_min || batch > manifest_->batch_max) {
    throw Error(Code::argument,
                "batch of " + std::to_string(batch) + ", the engine takes " + std::to_string(manifest_->batch_min) +
                    " to " + std::to_string(manifest_->batch_max),
                "build the engine with another --batch");
  }
  if (device_images == nullptr || device_logits == nullptr) {
    throw Error(Code::argument, "no memory for images or logits");
  }
  detail::Lease(*pool_, 1).first().infer_on(device_images, batch, device_logits, stream);
}

}  // namespace resnet_deploy
