// The EXIF orientation, which MLPerf's rule applies before anything else and torchvision's ignores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/geometry.hpp"

namespace resnet_deploy {

/// Pixels and the memory they are in.
struct Image {
  std::vector<std::uint8_t> data;  ///< (height, width, 3), R G B.
  int width = 0;
  int height = 0;

  Pixels pixels() const noexcept { return {data.data(), width, height, 0}; }
};

/// Turn and mirror an image as its EXIF tag 0x0112 says (as Pillow's ImageOps.exif_transpose does).
///
/// orientation: 1 to 8, by which corner and edge of the scene the first row and column show (TIFF 6.0, page 36).
///
/// Throws Error(Code::argument) if the orientation is none of these or the view makes no sense, Error(Code::data) if
/// the image has no pixels.
inline Image upright(const Pixels& image, int orientation) {
  require_pixels(image);
  if (orientation < 1 || orientation > 8) {
    throw Error(Code::argument, "unknown orientation " + std::to_string(orientation), "give 1 to 8, as in EXIF");
  }
  const bool is_turned = orientation >= 5;  // the first row is a side of the scene
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  Image turned;
  turned.width = is_turned ? image.height : image.width;
  turned.height = is_turned ? image.width : image.height;
  turned.data.reserve(std::size_t{3} * static_cast<std::size_t>(turned.width) *
                      static_cast<std::size_t>(turned.height));
  for (int row = 0; row < turned.height; ++row) {
    for (int column = 0; column < turned.width; ++column) {
      const int down = is_turned ? column : row, across = is_turned ? row : column;
      const std::uint8_t* pixel = row_of(image, from_bottom ? image.height - 1 - down : down) +
                                  std::ptrdiff_t{3} * (from_right ? image.width - 1 - across : across);
      turned.data.insert(turned.data.end(), pixel, pixel + 3);
    }
  }
  return turned;
}

}  // namespace resnet_deploy
