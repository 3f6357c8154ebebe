// What becomes of an image's size: resized to the shorter side, the centre cut out (images.py in Python).
#pragma once

#include <cstdint>
#include <string>

#include "resnet_deploy/contract.hpp"
#include "resnet_deploy/errors.hpp"

namespace resnet_deploy {

/// Pixels to which an image is held, as it comes and resized: Pillow's default limit against decompression bombs, as in
/// Python.
inline constexpr std::int64_t max_image_pixels = 89478485;

/// From the source to the crop, all in pixels; a crop lies within the resized image.
struct Geometry {
  int source_width, source_height;
  int width, height;  ///< After the resize.
  int left, top;      ///< Where the crop begins.
  int side;           ///< Of the crop.

  bool keeps_size() const noexcept { return width == source_width && height == source_height; }
};

/// The longer side after the shorter one was resized, truncated.
inline std::int64_t resized_length(int resize, int longer, int shorter) noexcept {
  // Python's division of whole numbers: of exact operands (at most 2^44 here), rounded once.
  return static_cast<std::int64_t>(static_cast<double>(std::int64_t{resize} * longer) / shorter);
}

/// Where the crop begins: torchvision rounds a half to the even neighbour, MLPerf truncates.
inline int crop_offset(int length, int side, Interpolation interpolation) noexcept {
  const int margin = length - side, half = margin / 2;
  const bool goes_up = interpolation != Interpolation::area && margin % 2 == 1 && half % 2 == 1;
  return goes_up ? half + 1 : half;
}

/// Refuse a contract whose sizes would lead outside the image; the same words as in Python.
inline void require_sizes(const Preprocess& contract) {
  const std::string size = std::to_string(contract.image_size), resize = std::to_string(contract.resize);
  if (contract.image_size < 1) {
    throw Error(Code::argument, "image size " + size + " is not positive", "use a size such as 224");
  }
  if (contract.image_size > 2048) {
    throw Error(Code::argument, "image size " + size + " is too large", "give at most 2048");
  }
  if (contract.resize > 8192) throw Error(Code::argument, "resize " + resize + " is too large", "give at most 8192");
  if (contract.resize < contract.image_size) {
    throw Error(Code::argument, "resize " + resize + " is smaller than the crop " + size,
                "give resize a value of at least the image size");
  }
}

/// Refuse a view that does not describe an image, or one that is too large.
///
/// Throws Error(Code::data) for sizes, which come from a file: a width or height below 1, or too many pixels;
/// Error(Code::argument) for the view's memory, which is the caller's.
inline void require_pixels(const Pixels& image) {
  if (image.width < 1 || image.height < 1) {
    throw Error(Code::data, "the image has no pixels", "replace the image, or leave it out");
  }
  if (std::int64_t{image.width} * image.height > max_image_pixels) {
    throw Error(Code::data,
                std::to_string(image.width) + "x" + std::to_string(image.height) +
                    " pixels are more than the limit of " + std::to_string(max_image_pixels),
                "shrink the image first");
  }
  if (image.data == nullptr) throw Error(Code::argument, "the image's data is null", "give decoded 8-bit RGB pixels");
  const std::int64_t row = std::int64_t{3} * image.width;
  if (image.stride != 0 && image.stride < row) {
    throw Error(Code::argument,
                "a stride of " + std::to_string(image.stride) + " bytes is less than a row of " + std::to_string(row),
                "give the bytes from one row to the next, or 0 where there is nothing between them");
  }
}

/// Work out the sizes for an image of `width` x `height`, both positive; `contract` has valid sizes.
///
/// Throws Error(Code::data) if the image is so elongated that resizing its shorter side would exhaust the memory.
inline Geometry geometry_of(const Preprocess& contract, int width, int height) {
  const bool is_upright = width <= height;
  const std::int64_t longer =
      is_upright ? resized_length(contract.resize, height, width) : resized_length(contract.resize, width, height);
  if (longer * contract.resize > max_image_pixels) {
    const std::string fixed = std::to_string(contract.resize), other = std::to_string(longer);
    throw Error(
        Code::data,
        "too elongated: it would be resized to " + (is_upright ? fixed + "x" + other : other + "x" + fixed) + " pixels",
        "crop the image first");
  }
  const int resized = static_cast<int>(longer), side = contract.image_size;
  Geometry geometry{};
  geometry.source_width = width;
  geometry.source_height = height;
  geometry.width = is_upright ? contract.resize : resized;
  geometry.height = is_upright ? resized : contract.resize;
  geometry.left = crop_offset(geometry.width, side, contract.interpolation);
  geometry.top = crop_offset(geometry.height, side, contract.interpolation);
  geometry.side = side;
  return geometry;
}

/// The first byte of a row.
inline const std::uint8_t* row_of(const Pixels& image, int row) noexcept {
  const std::ptrdiff_t stride = image.stride != 0 ? image.stride : std::ptrdiff_t{3} * image.width;
  return image.data + row * stride;
}

}  // namespace resnet_deploy
