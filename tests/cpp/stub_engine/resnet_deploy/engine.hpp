// An Engine for tests of the C interface: it opens bundles as the real one does, and sums instead of inferring.
//
// The logit of a class is the sum of those bytes of an image whose position, modulo the number of classes, is the
// class. A bundle by the name of an accident has it when it is run. The program's locale is one that writes 0,5.
#pragma once

#include <locale>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/preprocess.hpp"

namespace resnet_deploy {

struct EngineOptions {
  int threads = 0;
  int requests = 1;
};

struct Comma final : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
};

class Engine {
 public:
  static Engine open(const std::string& path, const EngineOptions& options = {}) {
    if (options.threads < 0) throw Error(Code::argument, "negative threads", "give 0 or more");
    const Bundle bundle = open_bundle(path);
    bundle.verify_files();
    std::locale::global(std::locale(std::locale::classic(), new Comma));
    return Engine(bundle.manifest);
  }

  const Manifest& manifest() const { return manifest_; }
  std::string device() const { return "an abacus"; }

  void infer(const void* images, int count, float* logits) const {
    if (manifest_.name == "bad_alloc") throw std::bad_alloc();
    if (manifest_.name == "exception") throw std::out_of_range("an accident");
    if (manifest_.name == "number") throw 7;
    const auto* bytes = static_cast<const unsigned char*>(images);
    const std::size_t classes = static_cast<std::size_t>(manifest_.num_classes), size = manifest_.preprocess.nbytes();
    for (std::size_t image = 0; image < static_cast<std::size_t>(count); ++image) {
      std::vector<float> sums(classes);
      for (std::size_t i = 0; i < size; ++i) sums[i % classes] += static_cast<float>(bytes[image * size + i]);
      for (std::size_t i = 0; i < classes; ++i) logits[image * classes + i] = sums[i];
    }
  }

  void infer(const std::vector<Pixels>& pictures, float* logits) const {
    std::vector<unsigned char> batch(pictures.size() * manifest_.preprocess.nbytes());
    for (std::size_t i = 0; i < pictures.size(); ++i) {
      preprocess(pictures[i], manifest_.preprocess, batch.data() + i * manifest_.preprocess.nbytes());
    }
    infer(batch.data(), static_cast<int>(pictures.size()), logits);
  }

 private:
  explicit Engine(Manifest manifest) : manifest_(std::move(manifest)) {}

  Manifest manifest_;
};

}  // namespace resnet_deploy
