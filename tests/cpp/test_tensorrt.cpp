// The TensorRT runner on a stand-in of TensorRT and of the CUDA runtime (trt_stand_in/): the order of calls, what is
// copied, errors, and that everything is given back. Nothing here says how a GPU behaves.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "resnet_deploy/engine.hpp"

using namespace resnet_deploy;

namespace {

constexpr int kSide = 2, kValues = 12, kClasses = 3;
const std::string kPlan = "stand-in uint8 2 3 , 1 2 4 , 5 6 8";

stand_in::World& fresh_world() {
  stand_in::World& world = stand_in::world();
  world.devices = 1;
  world.device = 0;
  world.generation = "89";
  world.calls.clear();
  world.violations.clear();
  world.fail_at.clear();
  return world;
}

/// Folders that are gone when the program ends.
struct Folders {
  ~Folders() {
    for (const std::string& one : all) std::filesystem::remove_all(one);
  }
  std::vector<std::string> all;
} folders;

/// A bundle with `plan` in a folder of its own.
Bundle bundle_of(const std::string& plan) {
  char folder[] = "/tmp/resnet-deploy-test-XXXXXX";
  REQUIRE(mkdtemp(folder) != nullptr);
  folders.all.emplace_back(folder);
  Bundle bundle{folder, {}, ""};
  std::ofstream(std::string(folder) + "/model.plan") << plan;
  Manifest& manifest = bundle.manifest;
  manifest.backend = tensorrt_backend;
  manifest.engine = "model.plan";
  manifest.files["model.plan"] = sha256(plan);
  manifest.preprocess.image_size = kSide;
  manifest.num_classes = kClasses;
  manifest.batch_max = 8;
  manifest.requires_.library = tensorrt_backend;
  return bundle;
}

struct Opened {
  explicit Opened(const Bundle& from, EngineOptions options = {}) : engine(from.manifest, open_tensorrt(from, options)) {}
  Engine engine;
};

std::vector<unsigned char> images_of(int count) {
  std::vector<unsigned char> images(static_cast<std::size_t>(count) * kValues);
  for (std::size_t i = 0; i < images.size(); ++i) images[i] = static_cast<unsigned char>(i * 7 % 251);
  return images;
}

std::vector<float> expected_of(const std::vector<unsigned char>& images) {
  std::vector<float> logits;
  for (auto image = images.begin(); image != images.end(); image += kValues) {
    const float sum = std::accumulate(image, image + kValues, 0.0F);
    for (int c = 0; c < kClasses; ++c) logits.push_back(static_cast<float>(c + 1) * sum);
  }
  return logits;
}

int count_of(const std::string& call) {
  const auto& calls = stand_in::world().calls;
  return static_cast<int>(std::count(calls.begin(), calls.end(), call));
}

void check_nothing_is_left() {
  for (const auto& [kind, count] : stand_in::world().live) CHECK_MESSAGE(count == 0, kind);
  CHECK(stand_in::world().violations == std::vector<std::string>{});
}

/// The code and text of the error that `work` ends with.
template <typename Work>
std::pair<Code, std::string> error_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {Code::ok, ""};
}

/// Images and logits on the stand-in's device, which the host can see.
struct OnGpu {
  explicit OnGpu(const std::vector<unsigned char>& from)
      : images(detail::new_device_memory(from.size())),
        logits(detail::new_device_memory(from.size() / kValues * kClasses * sizeof(float))),
        count(static_cast<int>(from.size()) / kValues) {
    std::memcpy(images.get(), from.data(), from.size());
  }
  OnGpu(const OnGpu&) = delete;
  ~OnGpu() { stand_in::drain_all(); }  // the application's part: memory stays until the streams have passed
  float* answers() const { return static_cast<float*>(logits.get()); }
  std::vector<float> read() const { return {answers(), answers() + count * kClasses}; }
  detail::DeviceMemory images, logits;
  int count;
};

}  // namespace

TEST_CASE("host images of any number are split, run and answered") {
  fresh_world();
  for (const int requests : {1, 3}) {
    const Opened opened(bundle_of(kPlan), {0, requests});
    for (const int count : {1, 4, 5, 8, 9, 40}) {
      const auto images = images_of(count);
      std::vector<float> logits(static_cast<std::size_t>(count) * kClasses, -1);
      opened.engine.infer(images.data(), count, logits.data());
      CHECK(logits == expected_of(images));
    }
  }
  check_nothing_is_left();
}

TEST_CASE("a remainder below the least batch is filled up, and no more is answered than was asked") {
  fresh_world();
  Bundle bundle = bundle_of("stand-in uint8 2 3 , 3 4 8");
  bundle.manifest.batch_min = 3;
  const Opened opened(bundle);
  const auto images = images_of(9);
  std::vector<float> logits(9 * kClasses + 1, -1);
  opened.engine.infer(images.data(), 9, logits.data());
  CHECK(logits.back() == -1);
  logits.pop_back();
  CHECK(logits == expected_of(images));
}

TEST_CASE("memory is staged once, and sent once each way per batch") {
  fresh_world();
  const Opened opened(bundle_of(kPlan));
  const auto images = images_of(2);
  std::vector<float> logits(2 * kClasses);
  CHECK(count_of("cudaHostAlloc") == 0);  // not before the host has images
  for (int call = 0; call < 5; ++call) opened.engine.infer(images.data(), 2, logits.data());
  CHECK(count_of("cudaHostAlloc") == 2);
  CHECK(count_of("cudaMalloc") == 2);
  CHECK(count_of("cudaMemcpyAsync") == 10);
  CHECK(count_of("setOptimizationProfileAsync") == 1);
}

TEST_CASE("the profile is the one tuned for a size nearest to the batch") {
  fresh_world();
  const Bundle bundle = bundle_of("stand-in uint8 2 3 , 1 1 8 , 2 8 8");
  const detail::TensorRtEngine engine(bundle);
  CHECK(engine.profile_for(1) == 0);
  CHECK(engine.profile_for(4) == 0);
  CHECK(engine.profile_for(5) == 1);
  CHECK(error_of([&] { engine.profile_for(9); }).first == Code::argument);
}

TEST_CASE("images on the GPU are run where they are, in the caller's stream, without a copy and without a wait") {
  fresh_world();
  const auto images = images_of(4);
  {
    const Opened opened(bundle_of(kPlan));
    const OnGpu on_gpu(images);
    const detail::CudaStream stream = detail::new_stream();
    stand_in::world().calls.clear();
    opened.engine.infer_on(on_gpu.images.get(), 4, on_gpu.answers(), stream.get());
    for (const char* call : {"cudaMemcpyAsync", "cudaMalloc", "cudaHostAlloc", "cudaStreamSynchronize", "cudaEventSynchronize"}) {
      CHECK_MESSAGE(count_of(call) == 0, call);
    }
    CHECK(stream->done == 0);  // it is under way
    cudaStreamSynchronize(stream.get());
    CHECK(on_gpu.read() == expected_of(images));
  }
  check_nothing_is_left();
}

TEST_CASE("calls in different streams follow each other on the device") {
  fresh_world();
  const auto first = images_of(4), second = images_of(8);
  {
    const Opened opened(bundle_of(kPlan));
    const OnGpu a(first), b(second);
    const detail::CudaStream one = detail::new_stream(), other = detail::new_stream();
    opened.engine.infer_on(a.images.get(), 4, a.answers(), one.get());
    opened.engine.infer_on(b.images.get(), 8, b.answers(), other.get());
    cudaStreamSynchronize(other.get());  // the first call must have been run before
    CHECK(b.read() == expected_of(second));
    CHECK(a.read() == expected_of(first));
    std::vector<float> logits(4 * kClasses);
    opened.engine.infer_on(b.images.get(), 8, b.answers(), one.get());
    opened.engine.infer(first.data(), 4, logits.data());  // in a stream of its own
    CHECK(logits == expected_of(first));
    CHECK(one->done == one->put);
  }
  check_nothing_is_left();
}

TEST_CASE("the stand-in tells calls of one context that are out of order") {  // what the test above rests on
  fresh_world();
  const Bundle bundle = bundle_of(kPlan);
  const detail::TensorRtEngine engine(bundle);
  {
    const std::unique_ptr<nvinfer1::IExecutionContext> context((*engine).createExecutionContext());
    const OnGpu a(images_of(1));
    const detail::CudaStream one = detail::new_stream(), other = detail::new_stream();
    context->setOptimizationProfileAsync(0, one.get());
    context->setInputShape("images", engine.shape_of(1));
    context->setTensorAddress("images", a.images.get());
    context->setTensorAddress("logits", a.logits.get());
    CHECK(context->enqueueV3(one.get()));
    CHECK(context->enqueueV3(other.get()));
    cudaStreamSynchronize(other.get());
    cudaStreamSynchronize(one.get());
  }
  CHECK(stand_in::world().violations.size() == 2);
}

TEST_CASE("the default stream is served by a stream of the context's, in its order") {
  fresh_world();
  const auto images = images_of(4);
  {
    const Opened opened(bundle_of(kPlan));
    for (const cudaStream_t stream : {cudaStream_t{nullptr}, cudaStreamLegacy}) {
      const OnGpu on_gpu(std::vector<unsigned char>(images.size()));
      // What comes before in the default stream is before, and what comes after is after.
      stand_in::put(stream, [&] { std::memcpy(on_gpu.images.get(), images.data(), images.size()); });
      opened.engine.infer_on(on_gpu.images.get(), 4, on_gpu.answers(), stream);
      std::vector<float> seen;
      stand_in::put(stream, [&] { seen = on_gpu.read(); });
      cudaStreamSynchronize(stream);
      CHECK(seen == expected_of(images));
    }
  }
  check_nothing_is_left();
}

TEST_CASE("the engine's device is the thread's during a call, and the thread's own afterwards") {
  fresh_world().devices = 2;
  stand_in::world().device = 1;
  const auto images = images_of(1);
  {
    const Opened opened(bundle_of(kPlan));
    stand_in::world().device = 0;
    std::vector<float> logits(kClasses);
    opened.engine.infer(images.data(), 1, logits.data());
    CHECK(stand_in::world().device == 0);
    CHECK(logits == expected_of(images));
  }
  check_nothing_is_left();  // the stand-in would tell a call on another device
}

TEST_CASE("every call that fails is told, and nothing is left behind") {
  const auto images = images_of(4);
  const auto use = [&] {
    const Opened opened(bundle_of(kPlan));
    std::vector<float> logits(4 * kClasses);
    opened.engine.infer(images.data(), 4, logits.data());
    const OnGpu on_gpu(images);
    const detail::CudaStream stream = detail::new_stream();
    opened.engine.infer_on(on_gpu.images.get(), 4, on_gpu.answers(), stream.get());
    opened.engine.infer_on(on_gpu.images.get(), 4, on_gpu.answers(), nullptr);
    detail::check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    detail::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  };
  fresh_world();
  use();
  check_nothing_is_left();
  const std::vector<std::string> calls = stand_in::world().calls;
  int failures = 0;
  std::map<std::string, int> seen;
  for (const std::string& call : calls) {
    const int nth = seen[call]++;
    if (call.find("Destroy") != std::string::npos || call.find("Free") != std::string::npos) continue;
    if (call == "cudaEventSynchronize" || call == "getEngineValidity") continue;  // of destructors; answers, never fails
    CAPTURE(call);
    CAPTURE(nth);
    fresh_world().fail_at[call] = nth;
    const auto [code, text] = error_of(use);
    const bool is_last_wait = call == "cudaStreamSynchronize" && code == Code::ok;  // a destructor's
    const bool is_going_back = call == "cudaSetDevice";
    if (!is_last_wait && !is_going_back) {
      CHECK(code == (call == "cudaMalloc" || call == "cudaHostAlloc" ? Code::memory : Code::backend));
      CHECK_MESSAGE((text.find(call) != std::string::npos || call == "cudaGetDeviceCount"), text);
      ++failures;
    }
    stand_in::world().fail_at.clear();
    for (const auto& [kind, count] : stand_in::world().live) CHECK_MESSAGE(count == 0, kind);
    CHECK(stand_in::world().violations == std::vector<std::string>{});
  }
  CHECK(failures > 40);
}

TEST_CASE("an error says what TensorRT said, in one line") {
  fresh_world().fail_at["enqueueV3"] = 0;
  const Opened opened(bundle_of(kPlan));
  const auto images = images_of(1);
  std::vector<float> logits(kClasses);
  const auto [code, text] = error_of([&] { opened.engine.infer(images.data(), 1, logits.data()); });
  CHECK(text == std::string(tensorrt_backend) + ": enqueueV3 failed: enqueueV3 was told to fail");
  stand_in::world().fail_at.clear();
  opened.engine.infer(images.data(), 1, logits.data());  // and the engine goes on
  CHECK(logits == expected_of(images));
}

TEST_CASE("what does not suit the machine never reaches the deserializer") {
  struct Case {
    const char* name;
    Code code;
    const char* text;
    void (*change)(Bundle&);
  };
  const std::vector<Case> cases{
      {"version", Code::bundle, "requires.version is", [](Bundle& b) { b.manifest.requires_.version = "9.9.9.9"; }},
      {"generation", Code::bundle, "requires.compute_capabilities is 8.0, 9.0, this GPU has 8.9",
       [](Bundle& b) { b.manifest.requires_.compute_capabilities = {"8.0", "9.0"}; }},
      {"least generation", Code::bundle, "requires.least_compute_capability is 12.0, this GPU has 8.9",
       [](Bundle& b) { b.manifest.requires_.least_compute_capability = "12.0"; }},
      {"altered plan", Code::bundle, "model.plan was altered", [](Bundle& b) { b.manifest.files["model.plan"] = sha256("x"); }},
      {"stripped plan", Code::unsupported, "stripped of its weights", [](Bundle& b) { b.manifest.strip_weights = true; }},
      {"no GPU", Code::backend, "no NVIDIA GPU: none is listed", [](Bundle&) { stand_in::world().devices = 0; }},
  };
  for (const Case& one : cases) {
    CAPTURE(one.name);
    fresh_world();
    Bundle bundle = bundle_of(kPlan);
    one.change(bundle);
    const auto [code, text] = error_of([&] { open_tensorrt(bundle, {}); });
    CHECK(code == one.code);
    CHECK_MESSAGE(text.find(one.text) != std::string::npos, text);
    CHECK(count_of("deserializeCudaEngine") == 0);
    check_nothing_is_left();
  }
}

TEST_CASE("a plan that is not what the manifest says is refused") {
  struct Case {
    const char* plan;
    const char* text;
  };
  for (const Case one : {Case{"stand-in float32 2 3 , 1 2 8", "tensors"}, Case{"stand-in uint8 3 3 , 1 2 8", "tensors"},
                         Case{"stand-in uint8 2 4 , 1 2 8", "tensors"}, Case{"stand-in uint8 2 3 , 2 2 8", "spec.batch has 1"},
                         Case{"stand-in uint8 2 3 , 1 2 7", "spec.batch has 8"}}) {
    CAPTURE(one.plan);
    fresh_world();
    const auto [code, text] = error_of([&] { open_tensorrt(bundle_of(one.plan), {}); });
    CHECK(code == Code::bundle);
    CHECK_MESSAGE(text.find(one.text) != std::string::npos, text);
    check_nothing_is_left();
  }
}

TEST_CASE("a plan of another kind is refused") {
  fresh_world();
  const auto [code, text] = error_of([&] { open_tensorrt(bundle_of("another plan"), {}); });
#ifdef STAND_IN_RTX  // whose header says so before it is loaded
  CHECK(code == Code::bundle);
  CHECK(text.find("does not run here: UNSUPPORTED_CC, OLD_CUDA_DRIVER") != std::string::npos);
  CHECK(count_of("deserializeCudaEngine") == 0);
#else
  CHECK(code == Code::backend);
  CHECK(text == "tensorrt: deserializeCudaEngine failed: this is no plan");
#endif
  check_nothing_is_left();
}

TEST_CASE("code of the host's is let in where the bundle is for later versions, and nowhere else") {
  fresh_world();
  Bundle bundle = bundle_of(kPlan);
  bundle.manifest.requires_.version = detail::tensorrt_version();
  open_tensorrt(bundle, {});
  CHECK(count_of("setEngineHostCodeAllowed") == 0);
  bundle.manifest.requires_.later_versions = true;
  open_tensorrt(bundle, {});
  CHECK(count_of("setEngineHostCodeAllowed") == 1);
}

TEST_CASE("arguments that make no sense are refused") {
  fresh_world();
  const Opened opened(bundle_of(kPlan));
  std::vector<float> logits(8 * kClasses);
  const auto images = images_of(8);
  CHECK(error_of([&] { open_tensorrt(bundle_of(kPlan), {2, 1}); }).first == Code::argument);
  CHECK(error_of([&] { opened.engine.infer(images.data(), -1, logits.data()); }).first == Code::argument);
  CHECK(error_of([&] { opened.engine.infer(nullptr, 1, logits.data()); }).first == Code::argument);
  CHECK(error_of([&] { opened.engine.infer_on(images.data(), 9, logits.data(), nullptr); }).first == Code::argument);
  CHECK(error_of([&] { opened.engine.infer_on(nullptr, 1, logits.data(), nullptr); }).first == Code::argument);
  opened.engine.infer(nullptr, 0, nullptr);
}

TEST_CASE("float32 images are sent whole") {
  fresh_world();
  Bundle bundle = bundle_of("stand-in float32 2 3 , 1 2 8");
  bundle.manifest.preprocess.dtype = Dtype::float32;
  const Opened opened(bundle);
  const std::vector<float> images{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  std::vector<float> logits(2 * kClasses);
  opened.engine.infer(images.data(), 2, logits.data());
  CHECK(logits == std::vector<float>{66, 132, 198, 12, 24, 36});
}
