// A resize as weighted sums along the rows, then along the columns, of the part that is wanted.
//
// Rows of the source are narrowed one by one, and kept only while later rows of the result need them: scratch is as
// many rows as one output is made of. What the numbers are, and where they are rounded, is a rule's: a struct with
//
//   Value    of a narrowed row,     Weight,     Vector of four sums
//   Vector start()                                  where a sum begins
//   Vector across(Vector sum, Ints4 pixel, Weight)  adds a tap along a row
//   Vector narrowed(Vector sum)                     ends a sum along a row
//   Vector load(const Value*)                       four values of a narrowed row
//   Vector down(Vector sum, Vector values, Weight)  adds a tap along a column
//   uint8  pixel(lane of a sum)                     ends a sum along a column
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "resnet_deploy/geometry.hpp"
#include "resnet_deploy/lanes.hpp"

namespace resnet_deploy {

/// One way to resize images of one size. Not for two threads at once: it holds scratch.
class Resize {
 public:
  virtual ~Resize() = default;

  /// Write the crop of the resized image.
  ///
  /// image: of the size that this was made for.
  /// out: (side, side, 3), R G B.
  virtual void run(const Pixels& image, std::uint8_t* out) = 0;
};

/// What each output pixel is made of along one direction.
template <class Weight>
struct Taps {
  struct Output {
    int first;            ///< The first source pixel; neither this nor the last ever goes back.
    int count;            ///< Of source pixels.
    std::size_t weights;  ///< Where its weights begin.
  };
  std::vector<Output> outputs;
  std::vector<Weight> weights;

  void add(int first, const std::vector<Weight>& of_output) {
    outputs.push_back({first, static_cast<int>(of_output.size()), weights.size()});
    weights.insert(weights.end(), of_output.begin(), of_output.end());
  }
  int begin() const noexcept { return outputs.front().first; }
  int end() const noexcept { return outputs.back().first + outputs.back().count; }
  int most() const noexcept {
    int most = 0;
    for (const Output& output : outputs) most = std::max(most, output.count);
    return most;
  }
};

/// The last rows that were narrowed, found by their number in the source.
template <class Value>
class RowRing {
 public:
  RowRing(int rows, std::size_t length)
      : rows_(rows), length_(length), values_(static_cast<std::size_t>(rows) * length) {}

  void restart() noexcept { next_ = 0; }
  Value* operator[](int row) noexcept { return values_.data() + static_cast<std::size_t>(row % rows_) * length_; }

  /// Make rows `first` to `end` available; `first` and `end` never go back.
  template <class Narrow>
  void provide(int first, int end, const Narrow& narrow) {
    for (next_ = std::max(next_, first); next_ < end; ++next_) narrow(next_, (*this)[next_]);
  }

 private:
  int rows_;
  std::size_t length_;
  std::vector<Value> values_;
  int next_ = 0;
};

template <class Rule>
class SeparableResize final : public Resize {
 public:
  using Value = typename Rule::Value;
  using Weight = typename Rule::Weight;
  using Vector = typename Rule::Vector;

  SeparableResize(Taps<Weight> columns, Taps<Weight> rows)
      : columns_(std::move(columns)),
        rows_(std::move(rows)),
        length_(3 * columns_.outputs.size()),
        source_(3 * static_cast<std::size_t>(columns_.end() - columns_.begin()) + 1),
        ring_(rows_.most(), (length_ + block - 1) / block * block) {}

  void run(const Pixels& image, std::uint8_t* out) override {
    ring_.restart();
    for (const auto& output : rows_.outputs) {
      ring_.provide(output.first, output.first + output.count,
                    [&](int row, Value* narrowed) { narrow(row_of(image, row), narrowed); });
      for (std::size_t at = 0; at < length_; at += block) {
        std::uint8_t pixels[block];
        sum_columns(output, at, pixels);
        std::memcpy(out + at, pixels, std::min(block, length_ - at));
      }
      out += length_;
    }
  }

 private:
  static constexpr std::size_t block = 16;  // values that are summed side by side: what registers hold

  void narrow(const std::uint8_t* row, Value* narrowed) {
    // Read from a copy: four bytes are loaded for each pixel, and after the last there must be one to spare.
    std::memcpy(source_.data(), row + std::ptrdiff_t{3} * columns_.begin(), source_.size() - 1);
    for (const auto& output : columns_.outputs) {
      const std::uint8_t* pixel = source_.data() + std::ptrdiff_t{3} * (output.first - columns_.begin());
      const Weight* weight = columns_.weights.data() + output.weights;
      Vector sum = Rule::start();
      for (int tap = 0; tap < output.count; ++tap, pixel += 3) sum = Rule::across(sum, load4(pixel), weight[tap]);
      const Vector value = Rule::narrowed(sum);
      for (int channel = 0; channel < 3; ++channel) *narrowed++ = static_cast<Value>(value[channel]);
    }
  }

  void sum_columns(const typename Taps<Weight>::Output& output, std::size_t at, std::uint8_t* pixels) {
    const Weight* weight = rows_.weights.data() + output.weights;
    Vector sums[block / 4] = {Rule::start(), Rule::start(), Rule::start(), Rule::start()};
    for (int tap = 0; tap < output.count; ++tap) {
      const Value* values = ring_[output.first + tap] + at;
      for (std::size_t four = 0; four < block / 4; ++four) {
        sums[four] = Rule::down(sums[four], Rule::load(values + 4 * four), weight[tap]);
      }
    }
    Weight lanes[block];
    std::memcpy(lanes, sums, sizeof sums);
    for (std::size_t index = 0; index < block; ++index) pixels[index] = Rule::pixel(lanes[index]);
  }

  Taps<Weight> columns_, rows_;
  std::size_t length_;                // values of a narrowed row
  std::vector<std::uint8_t> source_;  // the part of a row that the crop is made of, and a byte
  RowRing<Value> ring_;
};

}  // namespace resnet_deploy
