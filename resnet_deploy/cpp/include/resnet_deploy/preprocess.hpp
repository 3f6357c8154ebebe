// The one way from decoded pixels to the network's input, equal to Python's images.preprocess_image to the bit.
//
// Pixels come as the decoder delivers them. An EXIF orientation is not applied here: torchvision's rule ignores it, and
// MLPerf's (interpolation `area`) applies it before anything else, which `upright` in orientation.hpp does.
//
// The result is the same under -O0 to -O3, any -march and any -ffp-contract; -ffast-math is refused (lanes.hpp). Its
// parts are too where the compiler tells of them; clang does not, so leave out -funsafe-math-optimizations there as
// well. Floating point must round to the nearest, as it does unless a program changes it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "resnet_deploy/contract.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/geometry.hpp"
#include "resnet_deploy/normalize.hpp"
#include "resnet_deploy/resize_area.hpp"
#include "resnet_deploy/resize_pillow.hpp"

namespace resnet_deploy {

/// An image that has the size already: its centre is cut out.
class Crop final : public Resize {
 public:
  explicit Crop(const Geometry& geometry) : geometry_(geometry) {}

  void run(const Pixels& image, std::uint8_t* out) override {
    const std::ptrdiff_t left = std::ptrdiff_t{3} * geometry_.left, length = std::ptrdiff_t{3} * geometry_.side;
    for (int row = geometry_.top; row < geometry_.top + geometry_.side; ++row) {
      const std::uint8_t* first = row_of(image, row) + left;
      out = std::copy(first, first + length, out);
    }
  }

 private:
  Geometry geometry_;
};

/// Preprocesses images by one contract; tables and scratch stay while images have the same size. For one thread.
class Preprocessor {
 public:
  /// Throws Error(Code::argument) if the contract's sizes or its interpolation are out of range.
  explicit Preprocessor(const Preprocess& contract) : contract_(contract), normalizer_(contract) {
    require_sizes(contract);
    if (contract.interpolation < Interpolation::nearest || contract.interpolation > Interpolation::area) {
      throw Error(Code::argument, "unknown interpolation", "choose one of: nearest, bilinear, bicubic, area");
    }
  }

  const Preprocess& contract() const noexcept { return contract_; }

  /// Preprocess one image.
  ///
  /// out: contract().nbytes() bytes, aligned for its dtype; unchanged if this throws.
  ///
  /// Throws Error(Code::data) if the image has no pixels, too many, or is too elongated, Error(Code::argument) if its
  /// memory or `out` makes no sense, std::bad_alloc if there is no memory for the tables.
  void operator()(const Pixels& image, void* out) {
    if (out == nullptr) throw Error(Code::argument, "there is no memory to write to", "give contract.nbytes() bytes");
    require_pixels(image);
    const Geometry geometry = geometry_of(contract_, image.width, image.height);
    if (resize_ == nullptr || geometry.source_width != width_ || geometry.source_height != height_) {
      resize_ = resize_for(geometry);
      width_ = geometry.source_width;
      height_ = geometry.source_height;
    }
    if (contract_.dtype == Dtype::uint8) {
      resize_->run(image, static_cast<std::uint8_t*>(out));
      return;
    }
    crop_.resize(contract_.size());
    resize_->run(image, crop_.data());
    normalizer_.run(crop_.data(), contract_.size() / 3, static_cast<float*>(out));
  }

 private:
  std::unique_ptr<Resize> resize_for(const Geometry& geometry) const {
    if (geometry.keeps_size()) return std::make_unique<Crop>(geometry);
    switch (contract_.interpolation) {
      case Interpolation::nearest:
        return std::make_unique<NearestResize>(geometry);
      case Interpolation::area:
        return area_resize(geometry);
      default:
        return pillow_resize(geometry, contract_.interpolation);
    }
  }

  Preprocess contract_;
  Normalizer normalizer_;
  int width_ = 0, height_ = 0;  // that resize_ was made for
  std::unique_ptr<Resize> resize_;
  std::vector<std::uint8_t> crop_;  // only where it is normalised
};

/// Preprocess one image; see Preprocessor, which spares the tables of the next image of the same size.
inline void preprocess(const Pixels& image, const Preprocess& contract, void* out) {
  Preprocessor{contract}(image, out);
}

/// Preprocess several images, in up to `threads` threads.
///
/// out: count * contract.nbytes() bytes; unchanged if an image is refused, and the error names the first such.
inline void preprocess_batch(const Pixels* images, int count, const Preprocess& contract, void* out, int threads) {
  if (count < 0 || (count > 0 && (images == nullptr || out == nullptr))) {
    throw Error(Code::argument, "there is no batch to preprocess", "give images, their number, and memory for all");
  }
  if (threads < 1) throw Error(Code::argument, std::to_string(threads) + " threads", "give at least 1");
  const Preprocessor checked{contract};
  for (int index = 0; index < count; ++index) {
    try {
      require_pixels(images[index]);
      geometry_of(contract, images[index].width, images[index].height);
    } catch (const Error& error) {
      throw Error(error.code(), "image " + std::to_string(index) + ": " + error.what(), error.hint());
    }
  }
  std::atomic<int> next{0};
  const auto work = [&] {
    Preprocessor preprocessor{contract};
    for (int index = next++; index < count; index = next++) {
      preprocessor(images[index],
                   static_cast<std::uint8_t*>(out) + static_cast<std::size_t>(index) * contract.nbytes());
    }
  };
  std::vector<std::future<void>> others;  // which wait for their threads also where something is thrown
  for (int thread = 1; thread < std::min(threads, count); ++thread)
    others.push_back(std::async(std::launch::async, work));
  work();
  for (auto& other : others) other.get();
}

}  // namespace resnet_deploy
