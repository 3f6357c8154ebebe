// A camera that lends its buffers to Python, as drivers and frame grabbers do: nothing is copied, and no buffer is
// written again, or freed, while anybody can still see it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;

namespace {

// Memory with a count of how much of it there is, so that a leak shows.
template <typename T>
class Buffer {
 public:
  explicit Buffer(std::size_t size) : values_(size) { ++live; }
  ~Buffer() { --live; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return values_.data(); }
  std::size_t size() const { return values_.size(); }

  static inline std::atomic<int> live{0};

 private:
  std::vector<T> values_;
};

// What Python holds of a buffer: a share of it, given back when the last view of it is gone.
template <typename T>
nb::capsule share(const std::shared_ptr<Buffer<T>>& buffer) {
  return nb::capsule(new std::shared_ptr<Buffer<T>>(buffer),
                     [](void* shared) noexcept { delete static_cast<std::shared_ptr<Buffer<T>>*>(shared); });
}

using Frames = nb::ndarray<nb::array_api, nb::device::cpu, std::uint8_t, nb::shape<-1, -1, -1, 3>, nb::c_contig>;
using Logits = nb::ndarray<nb::numpy, float, nb::shape<-1, -1>, nb::c_contig>;

class Camera {
 public:
  Camera(std::size_t batch, std::size_t side, std::size_t buffers) : batch_(batch), side_(side) {
    for (std::size_t made = 0; made < buffers; ++made) {
      ring_.push_back(std::make_shared<Buffer<std::uint8_t>>(batch * side * side * 3));
    }
  }

  // Fill the next free buffer and lend it: (batch, side, side, 3), R G B, by DLPack.
  Frames capture() {
    const auto free = std::find_if(ring_.begin(), ring_.end(), [](const auto& buffer) { return buffer.use_count() == 1; });
    if (free == ring_.end()) throw std::runtime_error("every buffer is lent: let go of a frame first");
    Buffer<std::uint8_t>& buffer = **free;
    expose(buffer);
    const std::size_t shape[] = {batch_, side_, side_, 3};
    return Frames(buffer.data(), 4, shape, share(*free));
  }

  std::vector<std::uintptr_t> addresses() const {
    std::vector<std::uintptr_t> all;
    for (const auto& buffer : ring_) all.push_back(reinterpret_cast<std::uintptr_t>(buffer->data()));
    return all;
  }

 private:
  // In place of light: a gradient of another colour for each frame.
  void expose(Buffer<std::uint8_t>& buffer) {
    std::uint8_t* pixel = buffer.data();
    for (std::size_t image = 0; image < batch_; ++image, ++taken_) {
      for (std::size_t row = 0; row < side_; ++row) {
        for (std::size_t column = 0; column < side_; ++column, pixel += 3) {
          pixel[0] = static_cast<std::uint8_t>(row * 255 / side_);
          pixel[1] = static_cast<std::uint8_t>(column * 255 / side_);
          pixel[2] = static_cast<std::uint8_t>(taken_ * 47);
        }
      }
    }
  }

  std::size_t batch_, side_, taken_ = 0;
  std::vector<std::shared_ptr<Buffer<std::uint8_t>>> ring_;
};

// Where the engine writes its logits, and C++ reads them.
class Answers {
 public:
  Answers(std::size_t batch, std::size_t classes)
      : batch_(batch), classes_(classes), buffer_(std::make_shared<Buffer<float>>(batch * classes)) {}

  // For `engine(frames, out=...)`: (batch, classes) float32.
  Logits view() { return Logits(buffer_->data(), {batch_, classes_}, share(buffer_)); }

  // The best class of each image, found in C++.
  std::vector<int> best() {
    std::vector<int> all;
    for (std::size_t image = 0; image < batch_; ++image) {
      const float* row = buffer_->data() + image * classes_;
      all.push_back(static_cast<int>(std::max_element(row, row + classes_) - row));
    }
    return all;
  }

  std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(buffer_->data()); }

 private:
  std::size_t batch_, classes_;
  std::shared_ptr<Buffer<float>> buffer_;
};

}  // namespace

NB_MODULE(camera, module) {
  nb::class_<Camera>(module, "Camera")
      .def(nb::init<std::size_t, std::size_t, std::size_t>(), nb::arg("batch"), nb::arg("side"), nb::arg("buffers"))
      .def("capture", &Camera::capture)
      .def_prop_ro("addresses", &Camera::addresses);
  nb::class_<Answers>(module, "Answers")
      .def(nb::init<std::size_t, std::size_t>(), nb::arg("batch"), nb::arg("classes"))
      .def("view", &Answers::view)
      .def("best", &Answers::best)
      .def_prop_ro("address", &Answers::address);
  module.def("live_buffers", [] { return Buffer<std::uint8_t>::live + Buffer<float>::live; });
}
