// Fuzzing whatever comes out of a file: JSON, manifests and NumPy archives. See README.md for how to run it.
//
// The first byte of an input says what the rest is: `j` JSON, `m` a manifest, whose digest is not looked at (no fuzzer
// would find one), anything else an archive.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/npz.hpp"

namespace {

using namespace resnet_deploy;

/// What was read is written and read again: the canonical form is a fixed point, or this aborts.
Json read_twice(const std::string& text) {
  Json json = parse_json(text);
  const std::string canonical = canonical_json(json);
  if (canonical_json(parse_json(canonical)) != canonical) std::abort();
  return json;
}

/// Every byte that a view claims is touched, so that a sanitizer sees one beyond the archive.
void touch(const ArrayView& array) {
  for (std::size_t i = 0; i < array.nbytes; ++i) {
    [[maybe_unused]] volatile const char byte = array.data[i];
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] == 'j') {
      read_twice(rest);
    } else if (data[0] == 'm') {
      const Manifest manifest = manifest_from_json(read_twice(rest));
      // What memory is taken by must have been held to its bounds.
      if (manifest.preprocess.nbytes() > std::size_t{12} * 2048 * 2048 || manifest.num_classes > max_classes)
        std::abort();
      if (manifest.batch_min < 1 || manifest.batch_max > max_batch) std::abort();
    } else if (data[0] == 'o') {
      detail::has_external_tensors(rest);
    } else {
      for (const auto& named : read_npz(rest.data(), rest.size())) touch(named.second);
    }
  } catch (const Error& error) {
    if (error.code() != Code::bundle) std::abort();
  }
  return 0;
}
