// Pillow's resize of 8-bit images, to the bit: with antialiasing, in fixed point (src/libImaging/Resample.c), and
// nearest by a path of its own (Geometry.c). The same in all releases up to 12; 13 resizes columns before rows where an
// image is more than twice as tall as wide, which neither Python's images.py nor this file follows.
//
// Along each direction an output pixel is a weighted sum over the pixels within `support` of its centre, where support
// and filter are stretched by the scale if the image is reduced. Weights are computed in double precision, normalised
// to a sum of 1, and rounded to steps of 2^-22, halves away from zero. Rows first; between the directions values are
// rounded to 8 bits, halves up, and cut off at 0 and 255. Pillow's wheels for x86-64 do not fuse products and sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "resnet_deploy/separable.hpp"

namespace resnet_deploy {

/// Sums in 32 bits: bicubic's weights, whose absolute values add up to less than 2, stay within them.
struct PillowRule {
  using Value = std::uint8_t;
  using Weight = std::int32_t;
  using Vector = Ints4;
  static constexpr int fraction_bits = 32 - 8 - 2;

  static Vector start() noexcept {
    constexpr std::int32_t half = 1 << (fraction_bits - 1);
    return Vector{half, half, half, half};
  }
  static Vector across(Vector sum, Vector pixel, Weight weight) noexcept { return sum + pixel * weight; }
  static Vector narrowed(Vector sum) noexcept {
    const Vector value = sum >> fraction_bits, positive = value & (value > 0);
    return positive | (positive > 255);  // all bits, of which the lowest 8 are kept
  }
  static Vector load(const Value* values) noexcept { return load4(values); }
  static Vector down(Vector sum, Vector values, Weight weight) noexcept { return sum + values * weight; }
  static std::uint8_t pixel(std::int32_t sum) noexcept {
    const std::int32_t value = sum >> fraction_bits;
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
  }
};

/// Pillow's filters, of a distance in (stretched) pixels.
inline double pillow_filter(Interpolation interpolation, double distance) noexcept {
  const double x = distance < 0 ? -distance : distance;
  if (interpolation == Interpolation::bilinear) return x < 1 ? 1 - x : 0;
  // Keys' cubic convolution with a = -1/2, as Horner's scheme in Pillow's order.
  constexpr double a = -0.5;
  if (x < 1) return rounded(rounded((rounded((a + 2) * x) - (a + 3)) * x) * x) + 1;
  if (x < 2) return (rounded((rounded((x - 5) * x) + 8) * x) - 4) * a;
  return 0;
}

/// Source pixels for one of the target's; Pillow hands the size on in single precision, which matters from 2^24 on.
inline double pillow_scale(int source, int target) noexcept {
  return static_cast<double>(static_cast<float>(source)) / target;
}

/// Weights of `wanted` outputs from `begin` on, of a resize from `source` to `target` pixels.
inline Taps<std::int32_t> pillow_taps(Interpolation interpolation, int source, int target, int begin, int wanted) {
  const double scale = pillow_scale(source, target), stretch = scale < 1 ? 1 : scale;
  const double support = (interpolation == Interpolation::bilinear ? 1.0 : 2.0) * stretch, shrink = 1 / stretch;
  Taps<std::int32_t> taps;
  std::vector<double> shares;
  std::vector<std::int32_t> weights;
  for (int output = begin; output < begin + wanted; ++output) {
    const double centre = rounded((output + 0.5) * scale);
    const int first = static_cast<int>(std::max(centre - support + 0.5, 0.0));
    const int end = static_cast<int>(std::min(centre + support + 0.5, static_cast<double>(source)));
    shares.clear();
    double total = 0;
    for (int tap = 0; tap < end - first; ++tap) {
      shares.push_back(pillow_filter(interpolation, rounded((tap + first - centre + 0.5) * shrink)));
      total += shares.back();
    }
    weights.clear();
    for (const double share : shares) {
      const double steps = rounded((total != 0 ? share / total : share) * (1 << PillowRule::fraction_bits));
      weights.push_back(static_cast<std::int32_t>(steps < 0 ? steps - 0.5 : steps + 0.5));
    }
    taps.add(first, weights);
  }
  return taps;
}

/// Bilinear and bicubic.
inline std::unique_ptr<Resize> pillow_resize(const Geometry& geometry, Interpolation interpolation) {
  return std::make_unique<SeparableResize<PillowRule>>(
      pillow_taps(interpolation, geometry.source_width, geometry.width, geometry.left, geometry.side),
      pillow_taps(interpolation, geometry.source_height, geometry.height, geometry.top, geometry.side));
}

/// The pixel in which the centre of the output lies.
class NearestResize final : public Resize {
 public:
  explicit NearestResize(const Geometry& geometry)
      : columns_(positions(geometry.source_width, geometry.width, geometry.left, geometry.side)),
        rows_(positions(geometry.source_height, geometry.height, geometry.top, geometry.side)) {}

  void run(const Pixels& image, std::uint8_t* out) override {
    for (const int row : rows_) {
      for (const int column : columns_) {
        const bool is_inside = row < image.height && column < image.width;
        const std::uint8_t* pixel = is_inside ? row_of(image, row) + std::ptrdiff_t{3} * column : black_;
        out = std::copy(pixel, pixel + 3, out);
      }
    }
  }

 private:
  /// Added up step by step, as Pillow does: over millions of pixels the sum may leave the image, which is black there.
  static std::vector<int> positions(int source, int target, int begin, int wanted) {
    const double scale = pillow_scale(source, target);
    double position = rounded(scale * 0.5);
    std::vector<int> positions;
    for (int output = 0; output < begin + wanted; ++output, position += scale) {
      if (output >= begin) positions.push_back(static_cast<int>(std::min(position, static_cast<double>(source))));
    }
    return positions;
  }

  static constexpr std::uint8_t black_[3] = {0, 0, 0};
  std::vector<int> columns_, rows_;
};

}  // namespace resnet_deploy
