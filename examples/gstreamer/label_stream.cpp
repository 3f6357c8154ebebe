// Label the frames of any GStreamer pipeline:
//
//     label_stream BUNDLE "videotestsrc num-buffers=30"
//     label_stream BUNDLE "v4l2src" --newest          a camera: late frames are dropped
//     label_stream BUNDLE "..." --dump FOLDER         keep what the engine saw, as PPM files
//
// The engine reads a frame where GStreamer has it: the buffer is mapped, and its rows are as far apart as GStreamer laid
// them. What to do with frames that come faster than they are labelled is the queue's to say, in the appsink:
//
// * By default, `max-buffers=4 drop=false`: the pipeline waits, and every frame is labelled. For files.
// * With --newest, `max-buffers=1 drop=true`: frames that nobody took are dropped, and the newest is labelled. For cameras.
#include <gst/app/gstappsink.h>
#include <gst/gst.h>
#include <gst/video/video.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "resnet_deploy/engine.hpp"

using resnet_deploy::Code;
using resnet_deploy::Engine;
using resnet_deploy::Error;
using resnet_deploy::Pixels;

namespace {

struct Unref {
  void operator()(GstElement* element) const { gst_object_unref(element); }
  void operator()(GstSample* sample) const { gst_sample_unref(sample); }
  void operator()(GstMessage* message) const { gst_message_unref(message); }
  void operator()(GstBus* bus) const { gst_object_unref(bus); }
};

template <typename T>
using Owned = std::unique_ptr<T, Unref>;

/// Take a GError's words, and free it.
std::string words(GError* error) {
  const std::string message = error == nullptr ? "unknown error" : error->message;
  g_clear_error(&error);
  return message;
}

/// A frame whose pixels are mapped for as long as this lives.
class MappedFrame {
 public:
  explicit MappedFrame(GstSample* sample) {
    GstVideoInfo info;
    if (!gst_video_info_from_caps(&info, gst_sample_get_caps(sample)) ||
        !gst_video_frame_map(&frame_, &info, gst_sample_get_buffer(sample), GST_MAP_READ)) {
      throw Error(Code::data, "a frame cannot be mapped", "put a videoconvert at the end of the pipeline");
    }
  }
  ~MappedFrame() { gst_video_frame_unmap(&frame_); }
  MappedFrame(const MappedFrame&) = delete;
  MappedFrame& operator=(const MappedFrame&) = delete;

  Pixels pixels() const {
    return {static_cast<const std::uint8_t*>(GST_VIDEO_FRAME_PLANE_DATA(&frame_, 0)), GST_VIDEO_FRAME_WIDTH(&frame_),
            GST_VIDEO_FRAME_HEIGHT(&frame_), GST_VIDEO_FRAME_PLANE_STRIDE(&frame_, 0)};
  }

  /// The frame's number in its source, where the source counts.
  std::optional<long long> number() const {
    if (!GST_BUFFER_OFFSET_IS_VALID(frame_.buffer)) return std::nullopt;
    return static_cast<long long>(GST_BUFFER_OFFSET(frame_.buffer));
  }

 private:
  GstVideoFrame frame_;
};

/// A running pipeline that ends in an appsink.
class Stream {
 public:
  Stream(const std::string& source, bool newest) {
    const std::string queue = newest ? "max-buffers=1 drop=true" : "max-buffers=4 drop=false";
    const std::string description =
        source + " ! videoconvert ! video/x-raw,format=RGB ! appsink name=frames sync=false " + queue;
    GError* error = nullptr;
    pipeline_.reset(gst_parse_launch(description.c_str(), &error));
    if (error != nullptr) {
      throw Error(Code::argument, "the pipeline is wrong: " + words(error), "try it with gst-launch-1.0");
    }
    sink_.reset(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "frames"));
    gst_element_set_state(pipeline_.get(), GST_STATE_PLAYING);
  }
  ~Stream() {
    if (pipeline_ != nullptr) gst_element_set_state(pipeline_.get(), GST_STATE_NULL);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// Wait for a frame; null at the end of the stream.
  ///
  /// Raises: Code::data, if the stream breaks off: after an error nothing ends it, and waiting would never end.
  Owned<GstSample> next() {
    GstAppSink* const sink = GST_APP_SINK(sink_.get());
    while (true) {
      Owned<GstSample> sample(gst_app_sink_try_pull_sample(sink, 100 * GST_MSECOND));
      if (sample != nullptr) return sample;
      check();
      if (gst_app_sink_is_eos(sink)) return nullptr;
    }
  }

 private:
  void check() {
    const Owned<GstBus> bus(gst_element_get_bus(pipeline_.get()));
    const Owned<GstMessage> message(gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR));
    if (message == nullptr) return;
    GError* error = nullptr;
    gst_message_parse_error(message.get(), &error, nullptr);
    throw Error(Code::data, "the stream broke off: " + words(error), "try the pipeline with gst-launch-1.0");
  }

  Owned<GstElement> pipeline_, sink_;
};

/// Write what the engine saw, row by row: a PPM has no room between rows.
void dump(const Pixels& pixels, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << pixels.width << ' ' << pixels.height << "\n255\n";
  for (int row = 0; row < pixels.height; ++row) {
    file.write(reinterpret_cast<const char*>(pixels.data + row * pixels.stride), std::streamsize{3} * pixels.width);
  }
  if (!file.flush()) throw Error(Code::file, path + " cannot be written", "check that the folder is there");
}

struct Options {
  std::string bundle, source, folder;
  bool newest = false;
};

void label_stream(const Options& options) {
  const Engine engine = Engine::open(options.bundle);
  Stream stream(options.source, options.newest);
  long long labelled = 0;  // of a source that does not count
  while (const Owned<GstSample> sample = stream.next()) {
    const MappedFrame frame(sample.get());
    const Pixels pixels = frame.pixels();
    const auto best = engine.classify({pixels}, 1).front().front();
    const long long number = frame.number().value_or(labelled++);
    std::printf("%lld  %5.1f%%  %s\n", number, best.probability * 100, best.label.c_str());
    std::fflush(stdout);  // a pipe would keep it back
    if (!options.folder.empty()) dump(pixels, options.folder + "/" + std::to_string(number) + ".ppm");
  }
}

/// Read the arguments; false if they make no sense.
bool read_arguments(const std::vector<std::string>& words, Options& options) {
  if (words.size() < 2) return false;
  options.bundle = words[0];
  options.source = words[1];
  for (std::size_t index = 2; index < words.size(); ++index) {
    if (words[index] == "--newest") {
      options.newest = true;
    } else if (words[index] == "--dump" && index + 1 < words.size()) {
      options.folder = words[++index];
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  gst_init(&count, &arguments);
  Options options;
  if (!read_arguments({arguments + 1, arguments + count}, options)) {
    std::cerr << "usage: label_stream BUNDLE SOURCE [--newest] [--dump FOLDER]\n";
    return 2;
  }
  try {
    label_stream(options);
    return 0;
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    if (!error.hint().empty()) std::cerr << "hint: " << error.hint() << '\n';
    return 2;
  }
}
