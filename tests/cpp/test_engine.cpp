// The engine on runners of the test's own: batches, turns, threads, errors, ranks; and the probes of the machine.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "resnet_deploy/engine.hpp"

using namespace resnet_deploy;

namespace {

constexpr int kSide = 2, kValues = 12, kClasses = 2;

/// What the runners of one engine were asked for.
struct Seen {
  std::vector<int> batches;      // in the order of start; of runners that take turns
  std::atomic<int> running{0};   // calls under way
  std::atomic<int> together{0};  // the most of them
  std::atomic<int> fail_in{-1};  // starts until one fails
};

/// Answers when it is waited for, with the first value of each image and the batch's size.
class LateRunner final : public Runner {
 public:
  explicit LateRunner(Seen& seen) : seen_(seen) {}
  ~LateRunner() override { CHECK(logits_ == nullptr); }  // nothing is under way

  void infer(const void* images, int batch, float* logits) override {
    start(images, batch, logits);
    wait();
  }
  void start(const void* images, int batch, float* logits) override {
    CHECK(logits_ == nullptr);  // one call at a time
    if (seen_.fail_in.load() >= 0 && seen_.fail_in-- == 0) throw Error(Code::backend, "it fails");
    seen_.batches.push_back(batch);
    images_ = static_cast<const unsigned char*>(images), batch_ = batch, logits_ = logits;
    const int now = ++seen_.running;
    for (int most = seen_.together; now > most && !seen_.together.compare_exchange_weak(most, now);) {
    }
  }
  void wait() override {
    if (logits_ == nullptr) return;
    for (int image = 0; image < batch_; ++image) {
      logits_[image * kClasses] = images_[image * kValues];
      logits_[image * kClasses + 1] = static_cast<float>(batch_);
    }
    logits_ = nullptr;
    --seen_.running;
  }
  std::string device() const override { return "a test"; }

 private:
  Seen& seen_;
  const unsigned char* images_ = nullptr;
  int batch_ = 0;
  float* logits_ = nullptr;
};

Engine engine_of(Seen& seen, int runners, int least, int most) {
  Manifest manifest;
  manifest.preprocess.image_size = kSide;
  manifest.num_classes = kClasses;
  manifest.batch_min = least, manifest.batch_max = most;
  Runners made;
  for (int i = 0; i < runners; ++i) made.push_back(std::make_unique<LateRunner>(seen));
  return Engine(std::move(manifest), std::move(made));
}

std::vector<unsigned char> numbered(int count) {
  std::vector<unsigned char> images(static_cast<std::size_t>(count) * kValues);
  for (int i = 0; i < count; ++i) images[static_cast<std::size_t>(i * kValues)] = static_cast<unsigned char>(i + 1);
  return images;
}

template <typename Work>
Code code_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.code();
  }
  return Code::ok;
}

struct Folder {
  Folder() {
    char name[] = "/tmp/resnet-deploy-test-XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((std::filesystem::path(path) / name).parent_path());
    std::ofstream(path + "/" + name) << text;
  }
  std::string path;
};

}  // namespace

TEST_CASE("images are split by the largest batch, and a remainder below the least is filled up") {
  struct Case {
    int count;
    std::vector<int> batches;
  };
  for (const Case& one : {Case{1, {3}}, Case{3, {3}}, Case{4, {4}}, Case{5, {4, 3}}, Case{11, {4, 4, 3}}, Case{9, {4, 4, 3}}}) {
    CAPTURE(one.count);
    Seen seen;
    const Engine engine = engine_of(seen, 1, 3, 4);
    const auto images = numbered(one.count);
    std::vector<float> logits(static_cast<std::size_t>(one.count * kClasses) + 1, -1);
    engine.infer(images.data(), one.count, logits.data());
    CHECK(seen.batches == one.batches);
    CHECK(logits.back() == -1);  // not one too many
    for (int i = 0; i < one.count; ++i) {
      CHECK(logits[static_cast<std::size_t>(i * kClasses)] == i + 1);
      CHECK(logits[static_cast<std::size_t>(i * kClasses) + 1] == one.batches[static_cast<std::size_t>(i / 4)]);
    }
  }
}

TEST_CASE("batches of one call are under way in all runners at once") {
  Seen seen;
  const Engine engine = engine_of(seen, 3, 1, 4);
  const auto images = numbered(40);
  std::vector<float> logits(40 * kClasses);
  engine.infer(images.data(), 40, logits.data());
  CHECK(seen.together == 3);
  for (int i = 0; i < 40; ++i) CHECK(logits[static_cast<std::size_t>(i * kClasses)] == i + 1);
}

TEST_CASE("a call that fails waits for what it began, and the next one succeeds") {
  Seen seen;
  const Engine engine = engine_of(seen, 3, 1, 4);
  const auto images = numbered(40);
  {
    std::vector<float> logits(40 * kClasses);
    seen.fail_in = 2;
    CHECK(code_of([&] { engine.infer(images.data(), 40, logits.data()); }) == Code::backend);
    CHECK(seen.running == 0);  // nobody writes to these logits any more
  }
  std::vector<float> logits(4 * kClasses);
  engine.infer(images.data(), 4, logits.data());
  CHECK(logits[6] == 4);
}

TEST_CASE("threads share the runners, and none touches another's") {  // the thread sanitizer's part
  for (const int runners : {1, 2}) {
    Seen seen;
    seen.batches.reserve(100000);
    struct Quiet final : Runner {  // without a log, which threads would share
      explicit Quiet(std::atomic<int>& counter) : running(counter) {}
      void infer(const void* images, int batch, float* logits) override {
        CHECK(!busy.exchange(true));
        ++running;
        for (int i = 0; i < batch; ++i) logits[i * kClasses] = static_cast<const unsigned char*>(images)[i * kValues];
        ++calls;  // no atomic: one thread at a time, handed over by the engine's lock
        --running;
        busy = false;
      }
      std::string device() const override { return "a test"; }
      std::atomic<int>& running;
      std::atomic<bool> busy{false};
      int calls = 0;
    };
    Manifest manifest;
    manifest.preprocess.image_size = kSide;
    manifest.num_classes = kClasses;
    manifest.batch_max = 4;
    Runners made;
    for (int i = 0; i < runners; ++i) made.push_back(std::make_unique<Quiet>(seen.running));
    const Engine engine(std::move(manifest), std::move(made));
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int caller = 0; caller < 4; ++caller) {
      threads.emplace_back([&] {
        const auto images = numbered(9);
        std::vector<float> logits(9 * kClasses);
        for (int call = 0; call < 200; ++call) {
          engine.infer(images.data(), 9, logits.data());
          for (int i = 0; i < 9; ++i) wrong += static_cast<int>(logits[static_cast<std::size_t>(i * kClasses)]) != i + 1;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
  }
}

TEST_CASE("an engine moves, with its calls' counters and all") {
  Seen seen;
  Engine first = engine_of(seen, 1, 1, 4);
  Engine second = std::move(first);
  CHECK(second.device() == "a test");
  CHECK(second.manifest().num_classes == kClasses);
  first = std::move(second);
  const auto images = numbered(1);
  std::vector<float> logits(kClasses);
  first.infer(images.data(), 1, logits.data());
  CHECK(logits[0] == 1);
}

TEST_CASE("pictures are preprocessed a batch at a time") {
  Seen seen;
  Engine engine = engine_of(seen, 1, 1, 4);
  const std::vector<std::uint8_t> grey(3 * 256 * 256, 77), black(3 * 256 * 256, 0);
  std::vector<Pixels> pictures(9, {grey.data(), 256, 256});
  pictures[8].data = black.data();
  std::vector<float> logits(9 * kClasses);
  engine.infer(pictures, logits.data());
  CHECK(seen.batches == std::vector<int>{4, 4, 1});
  CHECK(logits[0] == 77);
  CHECK(logits[16] == 0);
  const auto best = engine.classify({{grey.data(), 256, 256}}, 5);
  REQUIRE(best.size() == 1);
  REQUIRE(best[0].size() == kClasses);  // the model has no more
  CHECK(best[0][0].label == "class 0");
  CHECK(code_of([&] { engine.classify(pictures, 0); }) == Code::argument);
}

TEST_CASE("batches of pictures are under way in all runners at once, and each is of its own pictures") {
  for (const int runners : {1, 2, 3}) {
    CAPTURE(runners);
    Seen seen;
    const Engine engine = engine_of(seen, runners, 3, 4);
    std::vector<std::vector<std::uint8_t>> memory;
    std::vector<Pixels> pictures;
    for (int i = 0; i < 41; ++i) {  // ten batches, and one that is filled up
      memory.emplace_back(3 * 5 * 6, static_cast<std::uint8_t>(i + 1));
      pictures.push_back(i % 3 == 0 ? Pixels{memory.back().data(), 6, 5} : Pixels{memory.back().data(), 5, 6});
    }
    std::vector<float> logits(41 * kClasses + 1, -1);
    engine.infer(pictures, logits.data());
    CHECK(seen.together == runners);
    CHECK(seen.batches.size() == 11);
    CHECK(logits.back() == -1);  // not one too many
    for (int i = 0; i < 41; ++i) {  // a batch is read when it is waited for: its memory was not prepared anew
      CHECK(logits[static_cast<std::size_t>(i * kClasses)] == i + 1);
      CHECK(logits[static_cast<std::size_t>(i * kClasses) + 1] == (i < 40 ? 4 : 3));
    }
  }
}

TEST_CASE("a picture that is refused ends the call when what it began is done") {
  Seen seen;
  const Engine engine = engine_of(seen, 2, 1, 1);
  const std::vector<std::uint8_t> grey(3 * 4 * 4, 77);
  std::vector<Pixels> pictures(4, {grey.data(), 4, 4});
  pictures[2].width = 0;
  std::vector<float> logits(4 * kClasses, -1);
  CHECK(code_of([&] { engine.infer(pictures, logits.data()); }) == Code::data);
  CHECK(seen.batches.size() == 2);
  CHECK(seen.running == 0);  // nobody writes to these logits any more
  CHECK(logits[2] == 77);
  CHECK(logits[4] == -1);
}

TEST_CASE("the first pictures of a call are prepared before it takes a runner from others") {
  Seen seen;
  const Engine engine = engine_of(seen, 1, 1, 1);
  struct Holding final : Runner {
    explicit Holding(const Engine*& it) : engine(it) {}
    void infer(const void*, int, float*) override {
      const Pixels nothing;
      CHECK(code_of([&] { float unused = 0; engine->infer({nothing}, &unused); }) == Code::data);  // and does not wait
    }
    std::string device() const override { return "a test"; }
    const Engine*& engine;
  };
  const Engine* itself = nullptr;
  Runners one;
  one.push_back(std::make_unique<Holding>(itself));
  const Engine holding(engine.manifest(), std::move(one));
  itself = &holding;
  const auto images = numbered(1);
  float logits[kClasses];
  holding.infer(images.data(), 1, logits);
}

TEST_CASE("a CPU's engine refuses images on a GPU") {
  Seen seen;
  const Engine engine = engine_of(seen, 1, 1, 4);
  float logits[kClasses];
  CHECK(code_of([&] { engine.infer_on(&seen, 1, logits, nullptr); }) == Code::argument);
}

TEST_CASE("classes are ranked as in Python") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  struct Case {
    std::vector<float> logits;
    std::vector<int> ranks;
  };
  for (const Case& one : {Case{{1, 3, 2}, {1, 2, 0}}, Case{{2, 2, 2}, {0, 1, 2}}, Case{{0, -0.0F, 1}, {2, 0, 1}},
                          Case{{nan, 1, infinity}, {2, 1, 0}}, Case{{-infinity, nan, -1}, {2, 0, 1}}, Case{{nan, nan, 0}, {2, 0, 1}}}) {
    CHECK(best_classes(one.logits.data(), 3, 3) == one.ranks);
    CHECK(best_classes(one.logits.data(), 3, 1) == std::vector<int>{one.ranks[0]});
  }
  const std::vector<float> logits{1, 2};
  CHECK(best_classes(logits.data(), 2, 5).size() == 2);
  const float large[] = {1000, 1000, -1000};
  CHECK(softmax(large, 3) == std::vector<double>{0.5, 0.5, 0});  // exact: exp(0) and an exp that is zero
}

TEST_CASE("a bundle of another backend is refused with what to do") {
  CHECK(code_of([] { detail::check_backend("tensorrt"); }) == Code::unsupported);
  try {
    detail::check_backend("onnxruntime");
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.hint() == "build the engine with --backend openvino");
  }
}

TEST_CASE("options that make no sense are refused") {
  CHECK(code_of([] { check_options({-1, 1}); }) == Code::argument);
  CHECK(code_of([] { check_options({0, 0}); }) == Code::argument);
  CHECK(code_of([] { check_options({1025, 1}); }) == Code::argument);
  check_options({1024, 1024});
}

TEST_CASE("threads are counted by core and by the container's quota") {
  const auto cpus = detail::usable_cpus();
  REQUIRE(!cpus.empty());
  const int all = static_cast<int>(cpus.size());
  const auto siblings = [](int cpu) { return "devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list"; };
  const Folder bare, paired, limited, unlimited, older;
  CHECK(compute_threads(bare.path) == all);  // the kernel tells nothing
  for (const int cpu : cpus) paired.write(siblings(cpu), "0-99\n");
  CHECK(compute_threads(paired.path) == 1);  // of one core
  limited.write("fs/cgroup/cpu.max", "150000 100000\n");
  CHECK(compute_threads(limited.path) == 1);
  unlimited.write("fs/cgroup/cpu.max", "max 100000\n");
  CHECK(compute_threads(unlimited.path) == all);
  older.write("fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
  older.write("fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(compute_threads(older.path) == 1);  // half a core is one thread
}

TEST_CASE("the INT8 dot product is read from the kernel's list") {
  const Folder folder;
  folder.write("with", "processor : 0\nflags\t\t: fpu avx512_vnni\n");
  folder.write("without", "flags\t\t: fpu avx2 avx512_vnni_or_so\n");
  folder.write("arm", "Features\t: fp asimddp\n");
  CHECK(has_int8_dot_product(folder.path + "/with"));
  CHECK(!has_int8_dot_product(folder.path + "/without"));
  CHECK(has_int8_dot_product(folder.path + "/arm"));
  CHECK(!has_int8_dot_product(folder.path + "/nothing"));
  Requirements wanted;
  check_cpu(wanted, folder.path + "/without");
  wanted.int8_dot_product = true;
  CHECK(code_of([&] { check_cpu(wanted, folder.path + "/without"); }) == Code::bundle);
}

TEST_CASE("versions are compared as numbers") {
  Requirements wanted;
  CHECK(takes_version(wanted, "1.2"));
  wanted.version = "10.9.1";
  CHECK(takes_version(wanted, "10.9.1"));
  CHECK(!takes_version(wanted, "10.16.1"));
  wanted.later_versions = true;
  CHECK(takes_version(wanted, "10.16.1"));
  CHECK(!takes_version(wanted, "10.8.9"));
  CHECK(!takes_version(wanted, "11.0.0"));
  wanted.least_compute_capability = "8.6";
  CHECK(misfit_of_gpu(wanted, "12.0").empty());
  CHECK(!misfit_of_gpu(wanted, "8.0").empty());
}
