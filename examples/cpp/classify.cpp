// Classify a picture with an engine bundle:
//
//     classify BUNDLE PICTURE.ppm    the five best classes, with their probabilities
//     classify BUNDLE --golden       replay the inputs that the bundle keeps, against the answers it keeps
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "resnet_deploy/engine.hpp"
#include "resnet_deploy/golden.hpp"

using resnet_deploy::Code;
using resnet_deploy::Engine;
using resnet_deploy::Error;
using resnet_deploy::Pixels;

namespace {

struct Picture {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;

  Pixels pixels() const { return {rgb.data(), width, height}; }
};

/// Read a number of a PPM's header, past white space and comments.
int read_number(std::istream& file) {
  while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  int number = 0;
  file >> number;
  return number;
}

/// Read a PPM of 8 bits (P6), the format that needs no library.
Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(Code::file, path + " cannot be read", "give a PPM, as `convert photo.jpg photo.ppm` writes it");
  }
  std::string magic(2, '\0');
  file.read(magic.data(), 2);
  Picture picture;
  picture.width = read_number(file);
  picture.height = read_number(file);
  const int most = read_number(file);
  file.get();  // the one white space before the pixels
  const bool is_sound = magic == "P6" && file && most == 255 && picture.width > 0 && picture.height > 0 &&
                        picture.width <= 1 << 14 && picture.height <= 1 << 14;
  if (!is_sound) throw Error(Code::data, path + " is not a PPM of 8 bits", "it begins with P6, width, height and 255");
  picture.rgb.resize(std::size_t{3} * picture.width * picture.height);
  file.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
  if (!file) throw Error(Code::data, path + " ends in the middle of the picture", "copy it again");
  return picture;
}

/// Print how far the engine is from the answers that the bundle keeps; those of another machine differ in rounding.
int replay_golden(const std::string& bundle, const Engine& engine) {
  constexpr double tolerance = 1e-3;  // of logits of about 10, in FP32; CPUs differ in the order of their sums
  const resnet_deploy::Golden golden = read_golden(resnet_deploy::open_bundle(bundle));
  const double worst = resnet_deploy::replay(golden, [&](const void* images, int count, float* logits) {
    engine.infer(images, count, logits);
  });
  std::printf("%d golden images, largest difference of a logit %.2g (tolerance %.2g)\n", golden.count, worst,
              tolerance);
  return worst <= tolerance ? 0 : 1;
}

int run(const std::string& bundle, const std::string& what) {
  const Engine engine = Engine::open(bundle);
  if (what == "--golden") return replay_golden(bundle, engine);
  const Picture picture = read_ppm(what);
  const auto best = engine.classify({picture.pixels()}, 5);  // a list for each picture
  for (const resnet_deploy::Prediction& one : best.front()) {
    std::printf("%6.2f%%  %s\n", one.probability * 100, one.label.c_str());
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: classify BUNDLE (PICTURE.ppm | --golden)\n";
    return 2;
  }
  try {
    return run(arguments[1], arguments[2]);
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    if (!error.hint().empty()) std::cerr << "hint: " << error.hint() << '\n';
    return 2;
  }
}
