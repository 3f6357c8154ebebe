// OpenVINO on the CPU; the one place that sets its properties, the same as openvino_session.py.
#pragma once

#include <sstream>
#include <string>
#include <utility>

#include <openvino/openvino.hpp>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/machine.hpp"
#include "resnet_deploy/manifest.hpp"
#include "resnet_deploy/options.hpp"
#include "resnet_deploy/requirements.hpp"
#include "resnet_deploy/runner.hpp"

namespace resnet_deploy {

namespace detail {

/// Call `work`; what OpenVINO throws is of many lines, of which the last says most.
///
/// Raises: Code::backend.
template <typename Work>
auto translate_openvino(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (const ov::Exception& error) {
    std::istringstream lines(error.what());
    std::string last = "it gave no reason";
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
    }
    throw Error(Code::backend, "OpenVINO refuses the model: " + last.substr(last.find_first_not_of(" \t\r")));
  }
}

}  // namespace detail

/// Runs one compiled model in a request of its own; images and logits stay in the caller's memory.
class OpenVinoRunner final : public Runner {
 public:
  OpenVinoRunner(ov::CompiledModel compiled, const Manifest& manifest)
      : compiled_(std::move(compiled)),
        request_(compiled_.create_infer_request()),
        type_(manifest.preprocess.dtype == Dtype::uint8 ? ov::element::u8 : ov::element::f32),
        classes_(static_cast<std::size_t>(manifest.num_classes)) {
    const auto side = static_cast<std::size_t>(manifest.preprocess.image_size);
    shape_ = type_ == ov::element::u8 ? ov::Shape{0, side, side, 3} : ov::Shape{0, 3, side, side};
  }

  void infer(const void* images, int batch, float* logits) override {
    start(images, batch, logits);
    wait();
  }

  void start(const void* images, int batch, float* logits) override {
    detail::translate_openvino([&] {
      shape_[0] = static_cast<std::size_t>(batch);
      // OpenVINO's tensors are views of memory that may be written to; it does not write to inputs.
      request_.set_input_tensor(ov::Tensor(type_, shape_, const_cast<void*>(images)));
      request_.set_output_tensor(ov::Tensor(ov::element::f32, {shape_[0], classes_}, logits));
      request_.start_async();
    });
  }

  void wait() override {
    detail::translate_openvino([&] { request_.wait(); });
  }

  std::string device() const override {
    return detail::translate_openvino([&] { return compiled_.get_property(ov::execution_devices).at(0); });
  }

 private:
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  ov::element::Type type_;
  ov::Shape shape_;  // of the last batch
  std::size_t classes_;
};

/// Open the engine of a bundle.
///
/// One request gets OpenVINO's hint LATENCY: all threads work on each call. Several get its hint THROUGHPUT: calls run
/// side by side in streams that part the threads among them. What the graph has in FP32 is computed in FP32: by itself
/// OpenVINO takes BF16 where the CPU has instructions for it.
///
/// Raises: Code::bundle, Code::backend.
inline Runners open_openvino(const Bundle& bundle, const EngineOptions& options) {
  const Manifest& manifest = bundle.manifest;
  const std::string build = ov::get_openvino_version().buildNumber;  // such as 2026.4.0-21234-0123456789a
  check_version(manifest.requires_, build.substr(0, build.find('-')));
  // Each request has its part of the threads, as in Python, where a runner is opened for each.
  const int threads = options.threads > 0 ? options.threads : compute_threads();
  const int each = std::max(1, threads / options.requests);
  ov::AnyMap properties{ov::hint::inference_precision(ov::element::f32),
                        ov::inference_num_threads(each * options.requests)};
  if (options.requests == 1) {
    properties.insert(ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
  } else {
    properties.insert(ov::hint::performance_mode(ov::hint::PerformanceMode::THROUGHPUT));
    properties.insert(ov::hint::num_requests(static_cast<std::uint32_t>(options.requests)));
  }
  const std::string model = bundle.read(manifest.engine);  // the bytes that were checked, and no file that may change
  return detail::translate_openvino([&] {
    // Never destroyed: a core gives the thread that compiles by it a stack for signal handlers, and takes that away in
    // whichever thread and order cores end (OpenVINO 2026.4); a signal to that thread then ends the process.
    static ov::Core& core = *new ov::Core;
    const ov::CompiledModel compiled = core.compile_model(core.read_model(model, ov::Tensor()), "CPU", properties);
    Runners runners;
    for (int request = 0; request < options.requests; ++request) {
      runners.push_back(std::make_unique<OpenVinoRunner>(compiled, manifest));
    }
    return runners;
  });
}

}  // namespace resnet_deploy
