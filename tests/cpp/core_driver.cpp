// Answers questions of the tests, many in one run.
//
//   core_driver canonical|manifest|versions|external|fuzz < FRAMES
//                                                  each frame is its length, 4 bytes little-endian, and as many bytes
//   core_driver bundle PATH...                     opens, verifies, and reads the engine and the golden vectors
//
// One line for each: `ok` and what came of it, or the code of the error and its message.
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>

#include "fuzz_bundle.cpp"
#include "resnet_deploy/golden.hpp"
#include "resnet_deploy/requirements.hpp"

namespace {

/// A line must stay one.
std::string on_one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  }
  return text;
}

void answer(const std::function<std::string()>& work) {
  try {
    const std::string found = work();  // before anything is written
    std::cout << "ok " << found << '\n';
  } catch (const Error& error) {
    std::cout << static_cast<int>(error.code()) << ' ' << on_one_line(error.what()) << '\n';
  }
}

bool read_frame(std::string& frame) {
  unsigned char length[4];
  if (std::fread(length, 1, sizeof length, stdin) != sizeof length) return false;
  std::size_t size = 0;
  for (std::size_t i = sizeof length; i-- > 0;) size = size << 8 | length[i];
  frame.resize(size);
  return std::fread(frame.data(), 1, size, stdin) == size;
}

std::string hex(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    out += {"0123456789abcdef"[code >> 4], "0123456789abcdef"[code & 15]};
  }
  return out;
}

std::string fuzz(const std::string& frame) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(frame.data()), frame.size());
  return "";
}

/// Of two versions, one a line: whether the first, required, takes the second; so with later ones; and as GPUs'.
std::string verdicts(const std::string& frame) {
  const std::string required = frame.substr(0, frame.find('\n')), here = frame.substr(frame.find('\n') + 1);
  Requirements exact, later, least;
  exact.version = later.version = least.least_compute_capability = required;
  later.later_versions = true;
  std::string said;
  said += takes_version(exact, here) ? '1' : '0';
  said += takes_version(later, here) ? '1' : '0';
  said += misfit_of_gpu(least, here).empty() ? '1' : '0';
  return said;
}

std::string open_all(const std::string& path) {
  const Bundle bundle = open_bundle(path);
  bundle.verify_files();
  bundle.read(bundle.manifest.engine);
  return bundle.manifest.name + ' ' + bundle.digest + ' ' + std::to_string(read_golden(bundle).count);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  if (command == "bundle") {
    for (int i = 2; i < count; ++i) answer([&] { return open_all(arguments[i]); });
    return 0;
  }
  for (std::string frame; read_frame(frame);) {
    if (command == "canonical") answer([&] { return hex(canonical_json(parse_json(frame))); });
    if (command == "manifest") answer([&] { return bundle_from_text("bundle", frame).manifest.name; });
    if (command == "versions") answer([&] { return verdicts(frame); });
    if (command == "external") answer([&] { return std::to_string(detail::has_external_tensors(frame)); });
    if (command == "fuzz") answer([&] { return fuzz(frame); });
  }
  return 0;
}
