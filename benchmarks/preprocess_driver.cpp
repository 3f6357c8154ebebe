// The preprocessing behind plain C functions, for tests and benchmarks in Python.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "resnet_deploy/orientation.hpp"
#include "resnet_deploy/preprocess.hpp"

namespace {

struct Message {
  char text[256];
  char hint[256];
};

// 0, or the code of the error, whose words are left in `message`.
template <class Call>
int guarded(Message* message, const Call& call) {
  try {
    call();
    return 0;
  } catch (const resnet_deploy::Error& error) {
    std::snprintf(message->text, sizeof message->text, "%s", error.what());
    std::snprintf(message->hint, sizeof message->hint, "%s", error.hint().c_str());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    return static_cast<int>(resnet_deploy::Code::memory);
  }
}

}  // namespace

extern "C" {

// By values, for a struct with arrays and enumerations is nothing that Python should have to lay out.
resnet_deploy::Preprocess* contract_new(int image_size, int resize, int interpolation, int is_float,
                                        const double* mean_std) {
  auto* contract = new resnet_deploy::Preprocess;
  contract->image_size = image_size;
  contract->resize = resize;
  contract->interpolation = static_cast<resnet_deploy::Interpolation>(interpolation);
  contract->dtype = is_float != 0 ? resnet_deploy::Dtype::float32 : resnet_deploy::Dtype::uint8;
  std::memcpy(contract->mean.data(), mean_std, sizeof contract->mean);
  std::memcpy(contract->std.data(), mean_std + 3, sizeof contract->std);
  return contract;
}

void contract_delete(resnet_deploy::Preprocess* contract) { delete contract; }

int preprocess_once(const resnet_deploy::Pixels* image, const resnet_deploy::Preprocess* contract, void* out,
                    Message* message) {
  return guarded(message, [&] { resnet_deploy::preprocess(*image, *contract, out); });
}

// With one Preprocessor for all, over and over in the same memory.
int preprocess_many(const resnet_deploy::Pixels* images, int count, const resnet_deploy::Preprocess* contract,
                    void* out, Message* message) {
  return guarded(message, [&] {
    resnet_deploy::Preprocessor preprocessor{*contract};
    for (int index = 0; index < count; ++index) preprocessor(images[index], out);
  });
}

int preprocess_parallel(const resnet_deploy::Pixels* images, int count, const resnet_deploy::Preprocess* contract,
                        void* out, int threads, Message* message) {
  return guarded(message, [&] { resnet_deploy::preprocess_batch(images, count, *contract, out, threads); });
}

// `out` has the size of the image; `size` gets width and height.
int turn_upright(const resnet_deploy::Pixels* image, int orientation, std::uint8_t* out, int* size, Message* message) {
  return guarded(message, [&] {
    const auto turned = resnet_deploy::upright(*image, orientation);
    std::memcpy(out, turned.data.data(), turned.data.size());
    size[0] = turned.width;
    size[1] = turned.height;
  });
}
}
