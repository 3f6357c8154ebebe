// Any contract, any view, any pixels: nothing is read or written beyond what was given, and whatever is refused is
// refused by an Error.
//
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
//       -I resnet_deploy/cpp/include tests/cpp/fuzz_preprocess.cpp -o fuzz_preprocess
//   ./fuzz_preprocess -max_len=256 -max_total_time=300
//
// With -DRESNET_DEPLOY_FUZZ_ROUNDS=20000 and without `fuzzer`, a program that makes up that many inputs of its own.
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "resnet_deploy/orientation.hpp"
#include "resnet_deploy/preprocess.hpp"

namespace {

constexpr std::int64_t most_pixels = 1 << 16;

// Numbers out of the input, zeros when it is exhausted.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  int number() {
    std::uint32_t bits = 0;
    for (int index = 0; index < 4; ++index) bits = bits << 8 | byte();
    return static_cast<int>(bits);
  }
  // Mostly a sensible one, sometimes any.
  int length(int usual) { return byte() < 8 ? number() : 1 + (byte() | byte() << 8) % usual; }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

resnet_deploy::Preprocess contract_from(Input& input) {
  resnet_deploy::Preprocess contract;
  contract.image_size = input.length(48);
  contract.resize = input.byte() % 2 == 0 ? contract.image_size : input.length(96);
  contract.interpolation = static_cast<resnet_deploy::Interpolation>(input.byte() % 5);  // one that there is not
  contract.dtype = input.byte() % 2 == 0 ? resnet_deploy::Dtype::uint8 : resnet_deploy::Dtype::float32;
  return contract;
}

void refused_or_done(const resnet_deploy::Pixels& image, const resnet_deploy::Preprocess& contract, int orientation) {
  const bool has_size = contract.image_size > 0 && contract.image_size <= 2048;
  // Exactly as large as promised, so that a byte more is noticed.
  const std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[has_size ? contract.nbytes() : 1]);
  try {
    resnet_deploy::preprocess(image, contract, out.get());
  } catch (const resnet_deploy::Error&) {
  }
  try {
    const auto turned = resnet_deploy::upright(image, orientation);
    resnet_deploy::preprocess_batch(&image, 1, contract, out.get(), 2);
    resnet_deploy::preprocess(turned.pixels(), contract, out.get());
  } catch (const resnet_deploy::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const resnet_deploy::Preprocess contract = contract_from(input);
  resnet_deploy::Pixels image;
  image.width = input.length(300);
  image.height = input.length(300);
  const int orientation = input.byte() % 10;
  const std::int64_t row = std::int64_t{3} * image.width;
  const int gap = input.byte();
  image.stride = gap < 200 ? 0 : static_cast<std::ptrdiff_t>(row + gap - 210);  // also too little
  const bool is_image = image.width > 0 && image.height > 0;
  if (is_image && std::int64_t{image.width} * image.height > most_pixels) return 0;
  std::vector<std::uint8_t> pixels;
  if (is_image && (image.stride == 0 || image.stride >= row)) {
    const std::int64_t stride = image.stride != 0 ? image.stride : row;
    pixels.resize(static_cast<std::size_t>(stride * (image.height - 1) + row));  // nothing after the last row
    for (auto& pixel : pixels) pixel = static_cast<std::uint8_t>(input.byte() ^ (&pixel - pixels.data()));
    pixels.shrink_to_fit();
  }
  image.data = pixels.empty() ? nullptr : pixels.data();
  refused_or_done(image, contract, orientation);
  return 0;
}

#ifdef RESNET_DEPLOY_FUZZ_ROUNDS
#include <cstdio>
#include <random>

int main() {
  std::mt19937 random(0);
  std::vector<std::uint8_t> input(256);
  for (int round = 0; round < RESNET_DEPLOY_FUZZ_ROUNDS; ++round) {
    for (auto& byte : input) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%d rounds\n", RESNET_DEPLOY_FUZZ_ROUNDS);
  return 0;
}
#endif
