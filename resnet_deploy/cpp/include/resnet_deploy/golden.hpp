// Golden vectors: a few inputs that every bundle keeps with the answers expected of its engine, replayed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/npz.hpp"

namespace resnet_deploy {

/// Inputs and the logits that the engine gave when it was built, or its graph on a CPU where it could not run there.
struct Golden {
  int count = 0;
  std::vector<unsigned char> images;  ///< count * Preprocess::nbytes() bytes, prepared.
  std::vector<float> logits;          ///< (count, num_classes)
};

/// Read a bundle's golden vectors.
///
/// Raises: Code::bundle, if they were altered or do not fit the manifest.
inline Golden read_golden(const Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  const std::string data = bundle.read("golden.npz");
  const auto refuse = [&](const std::string& reason) {
    throw Error(Code::bundle, bundle.path + ": golden.npz: " + reason, detail::rebuild);
  };
  std::map<std::string, ArrayView> arrays;
  try {
    arrays = read_npz(data.data(), data.size());
  } catch (const Error& error) {
    refuse(error.what());
  }
  const ArrayView &images = arrays["images"], &logits = arrays["logits"];
  const auto side = static_cast<std::size_t>(manifest.preprocess.image_size);
  const bool is_uint8 = manifest.preprocess.dtype == Dtype::uint8;
  const std::size_t count = images.shape.empty() ? 0 : images.shape.front();
  if (count < 1 || count > 1024) refuse("it has " + std::to_string(count) + " images, not 1 to 1024");
  using Shape = std::vector<std::size_t>;
  if (images.type != (is_uint8 ? ArrayType::uint8 : ArrayType::float32) ||
      images.shape != (is_uint8 ? Shape{count, side, side, 3} : Shape{count, 3, side, side})) {
    refuse("its images do not fit card.preprocess");
  }
  if (logits.type != ArrayType::float32 ||
      logits.shape != Shape{count, static_cast<std::size_t>(manifest.num_classes)}) {
    refuse("its logits do not fit card.num_classes");
  }
  Golden golden;
  golden.count = static_cast<int>(count);
  golden.images.assign(images.data, images.data + images.nbytes);
  golden.logits.resize(logits.nbytes / sizeof(float));
  std::memcpy(golden.logits.data(), logits.data, logits.nbytes);
  return golden;
}

/// The largest absolute difference of two sets of logits; infinite where one of them is no number.
inline double worst_difference(const std::vector<float>& expected, const std::vector<float>& got) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double{got[i]} - double{expected[i]});
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    if (difference > worst) worst = difference;
  }
  return worst;
}

/// Run the golden inputs through `infer(const void* images, int count, float* logits)`, an Engine's or a Runner's.
///
/// Returns the largest absolute difference of a logit; what is good enough is for the caller to say.
template <class Infer>
double replay(const Golden& golden, Infer&& infer) {
  std::vector<float> logits(golden.logits.size());
  infer(static_cast<const void*>(golden.images.data()), golden.count, logits.data());
  return worst_difference(golden.logits, logits);
}

}  // namespace resnet_deploy
