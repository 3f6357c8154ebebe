// Runs an engine on what a test hands over as raw bytes, and hands the logits back.
//
//     logits BUNDLE THREADS REQUESTS CALLERS prepared IMAGES COUNT LOGITS
//     logits BUNDLE THREADS REQUESTS CALLERS pixels PIXELS COUNT LOGITS WIDTH HEIGHT
//     logits unverified BUNDLE    opens the engine by itself, as if a file had changed after all were verified
//
// With several callers, each runs all images in a thread of its own; all must get the same answers, to the bit with one
// request. What the first got is written.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "resnet_deploy/engine.hpp"

using namespace resnet_deploy;

namespace {

std::vector<unsigned char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void run(const std::vector<std::string>& words) {
  EngineOptions options;
  options.threads = std::stoi(words[1]);
  options.requests = std::stoi(words[2]);
  Engine opened = Engine::open(words[0], options);
  const Engine engine = std::move(opened);  // it may move
  const int callers = std::stoi(words[3]), count = std::stoi(words[6]);
  const std::vector<unsigned char> bytes = read_file(words[5]);
  std::vector<Pixels> pictures;
  if (words[4] == "pixels") {
    const int width = std::stoi(words[8]), height = std::stoi(words[9]);
    for (int i = 0; i < count; ++i) pictures.push_back({bytes.data() + std::size_t{3} * width * height * i, width, height});
  }
  const std::size_t values = static_cast<std::size_t>(count) * engine.manifest().num_classes;
  std::vector<std::vector<float>> logits(callers, std::vector<float>(values));
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      if (pictures.empty()) engine.infer(bytes.data(), count, logits[caller].data());
      else engine.infer(pictures, logits[caller].data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& other : logits) {
    for (std::size_t i = 0; i < values; ++i) {
      if (std::abs(other[i] - logits[0][i]) > 1e-4F) throw Error(Code::internal, "callers got different answers");
    }
  }
  std::ofstream(words[7], std::ios::binary)
      .write(reinterpret_cast<const char*>(logits[0].data()), static_cast<std::streamsize>(values * sizeof(float)));
  std::cout << engine.device() << '\n';
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 3 && std::string(arguments[1]) == "unverified") {
      open_openvino(open_bundle(arguments[2]), {});
      return 0;
    }
    run({arguments + 1, arguments + count});
  } catch (const Error& error) {
    std::cerr << static_cast<int>(error.code()) << ": " << error.what() << '\n' << error.hint() << '\n';
    return 2;
  }
}
