// From 8-bit pixels to normalised planes, in single precision and in Python's order of operations.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "resnet_deploy/contract.hpp"
#include "resnet_deploy/lanes.hpp"

namespace resnet_deploy {

/// What each of the 256 values of each channel becomes: an 8-bit pixel needs no arithmetic.
class Normalizer {
 public:
  explicit Normalizer(const Preprocess& contract) noexcept {
    const bool is_mlperf = contract.interpolation == Interpolation::area;
    for (std::size_t channel = 0; channel < 3; ++channel) {
      const double mean = contract.mean[channel];
      const float subtracted = static_cast<float>(is_mlperf ? 255 * mean : mean);
      const float divisor = static_cast<float>(contract.std[channel]);
      for (std::size_t value = 0; value < 256; ++value) {
        const float pixel = static_cast<float>(value);
        values_[channel][value] = is_mlperf ? pixel - subtracted : (pixel / 255 - subtracted) / divisor;
      }
    }
  }

  /// pixels: (count, 3). planes: (3, count).
  void run(const std::uint8_t* pixels, std::size_t count, float* planes) const noexcept {
    for (std::size_t index = 0; index < count; ++index, pixels += 3) {
      planes[index] = values_[0][pixels[0]];
      planes[count + index] = values_[1][pixels[1]];
      planes[2 * count + index] = values_[2][pixels[2]];
    }
  }

 private:
  std::array<std::array<float, 256>, 3> values_;
};

}  // namespace resnet_deploy
