// The C interface on top of Engine: handles, sizes, and no exception that crosses.
#include "resnet_deploy.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iomanip>
#include <locale>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "resnet_deploy/engine.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/golden.hpp"
#include "resnet_deploy/preprocess.hpp"
#include "resnet_deploy/version.hpp"

namespace {

using resnet_deploy::Code;
using resnet_deploy::Engine;
using resnet_deploy::Error;

/// The folder by a name that outlives a change of the working directory; the name itself where there is none.
std::string absolute(const std::string& folder) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(folder, error);
  return error ? folder : path.string();
}

/// An engine with the text that is handed out of it.
struct Open {
  Open(const std::string& folder, Engine opened)
      : path(absolute(folder)), engine(std::move(opened)), device(engine.device()) {
    const resnet_deploy::Manifest& manifest = engine.manifest();
    labels = manifest.labels;
    for (int index = 0; labels.size() < static_cast<std::size_t>(manifest.num_classes); ++index) {
      labels.push_back("class " + std::to_string(index));
    }
  }

  std::string path;
  Engine engine;
  std::string device;
  std::vector<std::string> labels;
};

/// The open engines by handle; whoever runs one shares it, so that closing it meanwhile takes nothing away.
class Handles {
 public:
  resnet_deploy_engine add(std::shared_ptr<Open> opened) {
    const std::lock_guard<std::mutex> lock(mutex_);
    engines_.emplace(++last_, std::move(opened));
    return last_;
  }

  std::shared_ptr<Open> find(resnet_deploy_engine handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = engines_.find(handle);
    if (found == engines_.end()) throw Error(Code::argument, "the engine is not open", "open it, and close it once");
    return found->second;
  }

  std::shared_ptr<Open> remove(resnet_deploy_engine handle) {
    std::shared_ptr<Open> removed = find(handle);  // released by the caller, outside the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    if (engines_.erase(handle) == 0) throw Error(Code::argument, "the engine is not open", "close it once");
    return removed;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<resnet_deploy_engine, std::shared_ptr<Open>> engines_;
  resnet_deploy_engine last_ = 0;
};

Handles& handles() {
  static Handles* const all = new Handles;  // never destroyed: threads may outlive main
  return *all;
}

/// How many bytes the character of UTF-8 that begins here has; 0 where none begins (Unicode, table 3-7), or where it is
/// for control, or ends a line.
std::size_t character_length(const std::string& text, std::size_t begin) {
  const auto byte = [&](std::size_t at) -> unsigned {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
  };
  const auto follows = [&](std::size_t count) {
    for (std::size_t at = begin + 1; at <= begin + count; ++at) {
      if (byte(at) >> 6 != 2) return false;
    }
    return true;
  };
  const unsigned first = byte(begin), second = byte(begin + 1);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) && !(first == 0xc2 && second < 0xa0) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const bool is_overlong = first == 0xe0 && second < 0xa0, is_surrogate = first == 0xed && second > 0x9f;
    const bool ends_line = text.compare(begin, 3, "\xe2\x80\xa8") == 0 || text.compare(begin, 3, "\xe2\x80\xa9") == 0;
    return follows(2) && !is_overlong && !is_surrogate && !ends_line ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool is_overlong = first == 0xf0 && second < 0x90, is_beyond = first == 0xf4 && second > 0x8f;
    return follows(3) && !is_overlong && !is_beyond ? 4 : 0;
  }
  return 0;
}

/// Keep what is UTF-8 of one line; a path may hold any bytes.
std::string one_line(const std::string& text) {
  std::string line;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character_length(text, at);
    if (length == 0) line += '?';
    else line.append(text, at, length);
    at += std::max(length, std::size_t{1});
  }
  return line;
}

thread_local std::string last_error, last_hint;

resnet_deploy_code fail(Code code, const char* message, const char* hint) noexcept {
  try {
    last_error = one_line(message);
    last_hint = one_line(hint);
  } catch (...) {  // no memory for the words: the code says it
    last_error.clear();
    last_hint.clear();
  }
  return static_cast<resnet_deploy_code>(code);
}

/// Run `work`, and turn whatever it throws into a code and the words of this thread.
template <class Work>
resnet_deploy_code guarded(const Work& work) noexcept {
  try {
    work();
    return RESNET_DEPLOY_OK;
  } catch (const Error& error) {
    return fail(error.code(), error.what(), error.hint().c_str());
  } catch (const std::bad_alloc&) {
    return fail(Code::memory, "there is not enough memory", "pass fewer images at once, or close other engines");
  } catch (const std::exception& error) {
    return fail(Code::internal, error.what(), "report it as a bug");
  } catch (...) {
    return fail(Code::internal, "something was thrown that is no exception", "report it as a bug");
  }
}

void require(bool holds, const char* message, const char* hint = "") {
  if (!holds) throw Error(Code::argument, message, hint);
}

/// Hold what the caller has room for against `count` images.
void require_logits(const Open& opened, int32_t count, const float* logits, uint64_t logits_count) {
  require(count >= 0, "a negative number of images", "give none or more");
  const uint64_t needed = static_cast<uint64_t>(count) * static_cast<uint64_t>(opened.engine.manifest().num_classes);
  require(logits != nullptr || needed == 0, "logits is NULL");
  require(logits_count >= needed, "there is too little room for the logits",
          "give room for count * num_classes floats");
}

resnet_deploy::Pixels pixels_from(const resnet_deploy_pixels& picture) {
  return {picture.data, picture.width, picture.height, picture.stride};
}

}  // namespace

const char* resnet_deploy_version(void) { return resnet_deploy::version; }

const char* resnet_deploy_last_error(void) { return last_error.c_str(); }

const char* resnet_deploy_last_hint(void) { return last_hint.c_str(); }

resnet_deploy_code resnet_deploy_open(const char* path, int32_t threads, int32_t requests,
                                      resnet_deploy_engine* engine) {
  return guarded([&] {
    require(engine != nullptr, "engine is NULL");
    *engine = 0;
    require(path != nullptr, "path is NULL");
    resnet_deploy::EngineOptions options;
    options.threads = threads;
    options.requests = requests;
    *engine = handles().add(std::make_shared<Open>(path, Engine::open(path, options)));
  });
}

resnet_deploy_code resnet_deploy_close(resnet_deploy_engine engine) {
  return guarded([&] { handles().remove(engine); });
}

resnet_deploy_code resnet_deploy_describe(resnet_deploy_engine engine, resnet_deploy_info* info) {
  return guarded([&] {
    require(info != nullptr, "info is NULL");
    const auto opened = handles().find(engine);
    const resnet_deploy::Manifest& manifest = opened->engine.manifest();
    const int32_t side = manifest.preprocess.image_size;
    const bool is_uint8 = manifest.preprocess.dtype == resnet_deploy::Dtype::uint8;
    *info = {is_uint8 ? RESNET_DEPLOY_UINT8 : RESNET_DEPLOY_FLOAT32,
             {is_uint8 ? side : 3, side, is_uint8 ? 3 : side},
             manifest.preprocess.nbytes(),
             manifest.num_classes,
             manifest.batch_min,
             manifest.batch_opt,
             manifest.batch_max};
  });
}

resnet_deploy_code resnet_deploy_label(resnet_deploy_engine engine, int32_t index, const char** label) {
  return guarded([&] {
    require(label != nullptr, "label is NULL");
    const auto opened = handles().find(engine);
    require(index >= 0 && static_cast<std::size_t>(index) < opened->labels.size(), "there is no such class",
            "give an index from 0 to num_classes - 1");
    *label = opened->labels[static_cast<std::size_t>(index)].c_str();
  });
}

resnet_deploy_code resnet_deploy_device(resnet_deploy_engine engine, const char** device) {
  return guarded([&] {
    require(device != nullptr, "device is NULL");
    *device = handles().find(engine)->device.c_str();
  });
}

resnet_deploy_code resnet_deploy_infer(resnet_deploy_engine engine, const void* images, uint64_t images_bytes,
                                       int32_t count, float* logits, uint64_t logits_count) {
  return guarded([&] {
    const auto opened = handles().find(engine);
    require_logits(*opened, count, logits, logits_count);
    const uint64_t needed = static_cast<uint64_t>(count) * opened->engine.manifest().preprocess.nbytes();
    require(images_bytes == needed, "the images are not of the engine's size", "give count * image_bytes bytes");
    require(images != nullptr || count == 0, "images is NULL");
    if (count > 0) opened->engine.infer(images, count, logits);
  });
}

resnet_deploy_code resnet_deploy_infer_pixels(resnet_deploy_engine engine, const resnet_deploy_pixels* pictures,
                                              int32_t count, float* logits, uint64_t logits_count) {
  return guarded([&] {
    const auto opened = handles().find(engine);
    require_logits(*opened, count, logits, logits_count);
    require(pictures != nullptr || count == 0, "pictures is NULL");
    std::vector<resnet_deploy::Pixels> views;
    views.reserve(static_cast<std::size_t>(count));
    for (int32_t index = 0; index < count; ++index) views.push_back(pixels_from(pictures[index]));
    if (count > 0) opened->engine.infer(views, logits);
  });
}

resnet_deploy_code resnet_deploy_preprocess(resnet_deploy_engine engine, const resnet_deploy_pixels* picture, void* out,
                                            uint64_t out_bytes) {
  return guarded([&] {
    const auto opened = handles().find(engine);
    const resnet_deploy::Preprocess& contract = opened->engine.manifest().preprocess;
    require(picture != nullptr && out != nullptr, "picture or out is NULL");
    require(out_bytes >= contract.nbytes(), "there is too little room for the image",
            "give room for image_bytes bytes");
    resnet_deploy::preprocess(pixels_from(*picture), contract, out);
  });
}

resnet_deploy_code resnet_deploy_check_golden(resnet_deploy_engine engine, double tolerance, double* worst) {
  return guarded([&] {
    require(worst != nullptr, "worst is NULL");
    require(tolerance >= 0, "the tolerance is negative or no number", "give the largest difference of a logit");
    const auto opened = handles().find(engine);
    // By the manifest that the engine was opened with: files that were exchanged since are refused.
    const auto golden = resnet_deploy::read_golden({opened->path, opened->engine.manifest(), {}});
    *worst = resnet_deploy::replay(
        golden, [&](const void* images, int count, float* logits) { opened->engine.infer(images, count, logits); });
    if (*worst > tolerance) {
      std::ostringstream message;
      message.imbue(std::locale::classic());  // whatever the program's is
      message << "a logit differs by " << std::setprecision(3) << *worst << " from the bundle's golden vectors";
      throw Error(Code::accuracy, message.str(), "build the engine on this machine, or allow for another order of summation");
    }
  });
}
