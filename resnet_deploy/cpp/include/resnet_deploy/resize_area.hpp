// OpenCV's INTER_AREA resize of 8-bit images, to the bit (resampling.py in Python, which states the three rules):
// means of blocks where both sides are divided by whole numbers, weighted sums in single precision where they are
// reduced otherwise, and between two neighbours in fixed point where they are enlarged.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "resnet_deploy/separable.hpp"

namespace resnet_deploy {

/// Source pixels for one of the target's; OpenCV inverts twice, and so rounds twice.
inline double area_scale(int source, int target) noexcept { return 1.0 / (static_cast<double>(target) / source); }

/// Round a mean of 8-bit values, halves to the even neighbour: floats of 2^23 and more have no fraction.
inline std::uint8_t nearest_even(float mean) noexcept {
  constexpr float large = 1 << 23;
  return static_cast<std::uint8_t>(rounded(mean + large) - large);
}

/// Reduced: each product and each sum is rounded to single precision; a sum is rounded once more at its end.
struct ShareRule {
  using Value = float;
  using Weight = float;
  using Vector = Floats4;

  static Vector start() noexcept { return Vector{0, 0, 0, 0}; }
  static Vector across(Vector sum, Ints4 pixel, Weight weight) noexcept {
    return sum + rounded(__builtin_convertvector(pixel, Vector) * weight);
  }
  static Vector narrowed(Vector sum) noexcept { return sum; }
  static Vector load(const Value* values) noexcept {
    Vector four;
    std::memcpy(&four, values, sizeof four);
    return four;
  }
  static Vector down(Vector sum, Vector values, Weight weight) noexcept { return sum + rounded(values * weight); }
  static std::uint8_t pixel(float sum) noexcept { return nearest_even(sum); }
};

/// Weights of the source pixels that each of the wanted outputs covers, wholly or in part.
inline Taps<float> area_shares(int source, int target, int begin, int wanted) {
  constexpr double negligible = 1e-3;  // of a source pixel; left out, with the others' weights unchanged
  const double scale = area_scale(source, target);
  Taps<float> taps;
  std::vector<float> weights;
  for (int output = begin; output < begin + wanted; ++output) {
    const double low = rounded(output * scale), high = low + scale, cell = std::min(scale, source - low);
    const double end = std::min(std::floor(high), source - 1.0);  // the last pixel, of which a part may be covered
    const double whole = std::min(std::ceil(low), end);           // the first that is covered wholly
    weights.clear();
    const bool has_left = whole - low > negligible;
    if (has_left) weights.push_back(static_cast<float>((whole - low) / cell));
    weights.insert(weights.end(), static_cast<std::size_t>(end - whole), static_cast<float>(1 / cell));
    if (high - end > negligible) weights.push_back(static_cast<float>(std::min({high - end, 1.0, cell}) / cell));
    taps.add(static_cast<int>(whole) - (has_left ? 1 : 0), weights);
  }
  return taps;
}

/// Enlarged: weights in steps of 1/2048, and products shifted as 16-bit arithmetic wants it.
struct NeighbourRule {
  using Value = std::int32_t;
  using Weight = std::int32_t;
  using Vector = Ints4;

  static Vector start() noexcept { return Vector{0, 0, 0, 0}; }
  static Vector across(Vector sum, Vector pixel, Weight weight) noexcept { return sum + pixel * weight; }
  static Vector narrowed(Vector sum) noexcept { return sum; }
  static Vector load(const Value* values) noexcept {
    Vector four;
    std::memcpy(&four, values, sizeof four);
    return four;
  }
  static Vector down(Vector sum, Vector values, Weight weight) noexcept {
    return sum + (((values >> 4) * weight) >> 16);
  }
  static std::uint8_t pixel(std::int32_t sum) noexcept { return static_cast<std::uint8_t>((sum + 2) >> 2); }
};

/// Weights of the two pixels that each of the wanted outputs lies between; of one at the far edge.
inline Taps<std::int32_t> area_neighbours(int source, int target, int begin, int wanted) {
  const double scale = area_scale(source, target), inverse = static_cast<double>(target) / source;
  Taps<std::int32_t> taps;
  for (int output = begin; output < begin + wanted; ++output) {
    const int first = static_cast<int>(std::floor(output * scale));
    float share = static_cast<float>((output + 1) - rounded((first + 1) * inverse));
    share = share <= 0 ? 0 : share - std::floor(share);
    const auto steps = [](float part) { return static_cast<std::int32_t>(std::nearbyint(part * 2048)); };
    if (first >= source - 1) {
      taps.add(source - 1, {steps(1)});
    } else {
      taps.add(first, {steps(1 - share), steps(share)});
    }
  }
  return taps;
}

/// Divided by whole numbers: sums in integers; those of 2x2 round halves up, the others to the even neighbour.
class BlockResize final : public Resize {
 public:
  BlockResize(const Geometry& geometry, int across, int down)
      : geometry_(geometry), across_(across), down_(down), sums_(3 * static_cast<std::size_t>(geometry.side)) {}

  void run(const Pixels& image, std::uint8_t* out) override {
    const float share = 1.0F / static_cast<float>(std::int64_t{across_} * down_);
    for (int row = geometry_.top; row < geometry_.top + geometry_.side; ++row) {
      std::fill(sums_.begin(), sums_.end(), 0);
      for (int line = 0; line < down_; ++line) add_row(row_of(image, row * down_ + line));
      for (const std::int64_t sum : sums_) {
        *out++ = across_ == 2 && down_ == 2 ? static_cast<std::uint8_t>((sum + 2) >> 2)
                                            : nearest_even(rounded(static_cast<float>(sum) * share));
      }
    }
  }

 private:
  void add_row(const std::uint8_t* row) noexcept {
    const std::uint8_t* pixel = row + std::ptrdiff_t{3} * geometry_.left * across_;
    for (std::size_t output = 0; output < sums_.size(); output += 3) {
      for (int column = 0; column < across_; ++column, pixel += 3) {
        for (std::size_t channel = 0; channel < 3; ++channel) sums_[output + channel] += pixel[channel];
      }
    }
  }

  Geometry geometry_;
  int across_, down_;
  std::vector<std::int64_t> sums_;
};

/// Choose among the three rules; the sizes differ.
inline std::unique_ptr<Resize> area_resize(const Geometry& geometry) {
  const double across = area_scale(geometry.source_width, geometry.width);
  const double down = area_scale(geometry.source_height, geometry.height);
  if (across < 1 || down < 1) {
    return std::make_unique<SeparableResize<NeighbourRule>>(
        area_neighbours(geometry.source_width, geometry.width, geometry.left, geometry.side),
        area_neighbours(geometry.source_height, geometry.height, geometry.top, geometry.side));
  }
  constexpr double epsilon = std::numeric_limits<double>::epsilon();
  const double whole_across = std::round(across), whole_down = std::round(down);
  if (std::abs(across - whole_across) < epsilon && std::abs(down - whole_down) < epsilon) {
    return std::make_unique<BlockResize>(geometry, static_cast<int>(whole_across), static_cast<int>(whole_down));
  }
  return std::make_unique<SeparableResize<ShareRule>>(
      area_shares(geometry.source_width, geometry.width, geometry.left, geometry.side),
      area_shares(geometry.source_height, geometry.height, geometry.top, geometry.side));
}

}  // namespace resnet_deploy
