// The input contract: the one way from an image to the network's input (contract.Preprocess in Python).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace resnet_deploy {

enum class Interpolation { nearest, bilinear, bicubic, area };
enum class Dtype { uint8, float32 };

/// Frozen when a bundle is opened; validated there, by the rules of Preprocess in Python.
struct Preprocess {
  int image_size = 224;  ///< Side of the crop and of the network input, in pixels; at most 2048.
  int resize = 256;      ///< The shorter side after resizing, in pixels; image_size to 8192.
  Interpolation interpolation = Interpolation::bilinear;  ///< `area` is OpenCV's, and with it the rest of MLPerf's rule.
  std::array<double, 3> mean{0.485, 0.456, 0.406};         ///< Of values scaled to 0..1, R G B; subtracted.
  std::array<double, 3> std{0.229, 0.224, 0.225};          ///< Divided by.
  Dtype dtype = Dtype::uint8;  ///< uint8 tensors are NHWC, float32 ones are normalised and NCHW.

  /// Values of one image: 3 * image_size * image_size.
  std::size_t size() const noexcept {
    const auto side = static_cast<std::size_t>(image_size);
    return 3 * side * side;
  }
  /// Bytes of one image.
  std::size_t nbytes() const noexcept { return size() * (dtype == Dtype::uint8 ? 1 : sizeof(float)); }
};

/// A view of decoded pixels, 8-bit RGB, rows from top to bottom; the memory is the caller's.
struct Pixels {
  const std::uint8_t* data = nullptr;  ///< (height, width, 3), R G B.
  int width = 0;
  int height = 0;
  std::ptrdiff_t stride = 0;  ///< Bytes from one row to the next; 0 for 3 * width.
};

}  // namespace resnet_deploy
