// The C++ side of cpp_throughput.py: opens an engine, and takes a turn for each line "BATCH SECONDS" on standard input.
//
// Calls are made until so many seconds have passed, on images of the program's own; what each took is answered as a
// JSON array of seconds, in one line.
#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "resnet_deploy/engine.hpp"

int main(int count, char** arguments) {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  if (count != 3) return 2;
  try {
    resnet_deploy::EngineOptions options;
    options.threads = std::stoi(arguments[2]);
    const auto engine = resnet_deploy::Engine::open(arguments[1], options);
    std::vector<unsigned char> images;
    std::vector<float> logits;
    int batch = 0;
    double limit = 0;
    while (std::cin >> batch >> limit) {
      images.resize(batch * engine.manifest().preprocess.nbytes());
      for (std::size_t i = 0; i < images.size(); ++i) images[i] = static_cast<unsigned char>(i * 2654435761U >> 24);
      logits.resize(static_cast<std::size_t>(batch) * engine.manifest().num_classes);
      for (int untimed = 0; untimed < 2; ++untimed) engine.infer(images.data(), batch, logits.data());
      std::vector<double> taken;
      for (const auto begun = Clock::now(); Seconds(Clock::now() - begun).count() < limit;) {
        const auto start = Clock::now();
        engine.infer(images.data(), batch, logits.data());
        taken.push_back(Seconds(Clock::now() - start).count());
      }
      std::string line;
      char number[32];
      for (const double seconds : taken) {
        std::snprintf(number, sizeof number, "%s%.9f", line.empty() ? "[" : ",", seconds);
        line += number;
      }
      std::cout << line << "]" << std::endl;
    }
  } catch (const resnet_deploy::Error& error) {
    std::cerr << error.what() << '\n' << error.hint() << '\n';
    return 2;
  }
}
