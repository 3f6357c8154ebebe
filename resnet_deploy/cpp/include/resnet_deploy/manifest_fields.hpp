// From a manifest's JSON to a Manifest, held to the rules of Python's specs (bundle.py, specs.py, contract.py).
//
// Every field is held to them, also those that running an engine does not need: what one side refuses, the other does.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "resnet_deploy/fields.hpp"
#include "resnet_deploy/manifest.hpp"

namespace resnet_deploy {

inline constexpr int schema_version = 1;     ///< The latest that this library reads (bundle.SCHEMA_VERSION).
inline constexpr int max_classes = 100'000;  ///< specs.MAX_CLASSES
inline constexpr int max_batch = 1024;       ///< specs.MAX_BATCH
inline constexpr int max_image_size = 2048;  ///< contract.MAX_IMAGE_SIZE
inline constexpr int max_resize = 8192;      ///< contract.MAX_RESIZE

namespace detail {

inline void require_at_most(const std::string& what, std::int64_t value, std::int64_t most) {
  if (value > most) refuse(what + ' ' + std::to_string(value) + " is too large");
}

inline std::array<double, 3> read_channels(Fields& fields, const char* name, std::array<double, 3> fallback) {
  if (!fields.has(name)) return fallback;
  std::vector<double> values;
  fields.each(name,
              [&](const Json& item, const std::string& path) { values.push_back(Fields::as_number(item, path)); });
  if (values.size() != 3) refuse(fields.path(name) + " has " + std::to_string(values.size()) + " values, not 3");
  return {values[0], values[1], values[2]};
}

/// contract.Preprocess
inline Preprocess read_preprocess(Fields fields) {
  Preprocess found;
  const std::int64_t image_size = fields.integer("image_size", 224), resize = fields.integer("resize", 256);
  static const std::vector<std::string> interpolations{"nearest", "bilinear", "bicubic", "area"};  // as the enum
  if (fields.has("interpolation")) {
    const std::string name = fields.choice("interpolation", interpolations);
    const auto place = std::find(interpolations.begin(), interpolations.end(), name);
    found.interpolation = static_cast<Interpolation>(place - interpolations.begin());
  }
  found.mean = read_channels(fields, "mean", found.mean);
  found.std = read_channels(fields, "std", found.std);
  if (fields.has("color")) fields.choice("color", {"RGB"});
  const std::string dtype = fields.has("dtype") ? fields.choice("dtype", {"uint8", "float32"}) : "uint8";
  const std::string layout = fields.has("layout") ? fields.choice("layout", {"NHWC", "NCHW"}) : "NHWC";
  fields.require_no_others();

  if (image_size < 1)
    refuse(fields.path("image_size") + ": image size " + std::to_string(image_size) + " is not positive");
  require_at_most(fields.path("image_size") + ": image size", image_size, max_image_size);
  require_at_most(fields.path("resize") + ": resize", resize, max_resize);
  if (resize < image_size) {
    refuse(fields.path("resize") + ": resize " + std::to_string(resize) + " is smaller than the crop " +
           std::to_string(image_size));
  }
  for (const double value : found.std) {
    if (!(value > 0) || std::isinf(value)) refuse(fields.path("std") + " has a value that is not positive");
  }
  for (const double value : found.mean) {
    if (!std::isfinite(value)) refuse(fields.path("mean") + " has a value that is not finite");
  }
  if ((dtype == "uint8") != (layout == "NHWC")) {
    refuse(fields.path("dtype") + ": dtype " + dtype + " does not go with layout " + layout);
  }
  // contract.MLPERF_MEAN and MLPERF_STD
  const std::array<double, 3> mean{123.68 / 255, 116.78 / 255, 103.94 / 255}, std{1.0 / 255, 1.0 / 255, 1.0 / 255};
  if (found.interpolation == Interpolation::area && (found.mean != mean || found.std != std)) {
    refuse(fields.path("interpolation") + ": area goes with MLPerf's mean and std alone");
  }
  found.image_size = static_cast<int>(image_size);
  found.resize = static_cast<int>(resize);
  found.dtype = dtype == "uint8" ? Dtype::uint8 : Dtype::float32;
  return found;
}

/// specs.ModelCard
inline void read_card(Fields fields, Manifest& manifest) {
  manifest.architecture = fields.text("architecture");
  const std::int64_t classes = fields.integer("num_classes");
  if (classes < 1) refuse(fields.path("num_classes") + ": " + std::to_string(classes) + " classes");
  require_at_most(fields.path("num_classes") + ": number of classes", classes, max_classes);
  manifest.num_classes = static_cast<int>(classes);
  fields.text("weights");
  fields.text("weights_sha256");
  fields.text("initializers_sha256", "");
  manifest.labels = fields.texts("labels");
  const std::vector<std::string> folders = fields.texts("folders");
  manifest.preprocess = read_preprocess(fields.object("preprocess"));
  fields.require_no_others();
  for (const auto& [name, count] :
       {std::pair{"labels", manifest.labels.size()}, std::pair{"folders", folders.size()}}) {
    if (count > 0 && count != static_cast<std::size_t>(classes)) {
      refuse(std::to_string(count) + ' ' + fields.path(name) + " for a model of " + std::to_string(classes) +
             " classes");
    }
  }
}

struct BatchRange {
  std::int64_t min, opt, max;
  bool operator==(const BatchRange& other) const { return min == other.min && opt == other.opt && max == other.max; }
};

/// specs.BatchRange
inline BatchRange read_range(Fields fields) {
  const BatchRange range{fields.integer("min", 1), fields.integer("opt", 8), fields.integer("max", 64)};
  fields.require_no_others();
  if (range.min < 1 || range.min > range.opt || range.opt > range.max) {
    refuse(fields.path() + ": batch range " + std::to_string(range.min) + ':' + std::to_string(range.opt) + ':' +
           std::to_string(range.max) + " is not ordered");
  }
  require_at_most(fields.path() + ": batch size", range.max, max_batch);
  return range;
}

/// specs.whole_range, held against the range that the profiles are parts of.
inline void check_profiles(const std::vector<BatchRange>& profiles, const BatchRange& batch, const std::string& path) {
  std::vector<BatchRange> sorted = profiles;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.min < b.min; });
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    if (std::count(profiles.begin(), profiles.end(), profiles[i]) > 1) refuse(path + ": a profile is given twice");
  }
  std::int64_t covered = sorted.front().max;
  for (const BatchRange& profile : sorted) {
    if (profile.min > covered + 1) refuse(path + ": the profiles leave out a batch of " + std::to_string(covered + 1));
    covered = std::max(covered, profile.max);
  }
  if (!(BatchRange{sorted.front().min, profiles.front().opt, covered} == batch)) {
    refuse(path + ": the profiles do not make up the batch range");
  }
}

/// trt_options.TrtOptions, with what each flavour takes.
inline void read_trt(Fields fields, Manifest& manifest) {
  const std::string& backend = manifest.backend;
  const std::vector<std::string> targets = fields.texts("targets");
  const bool has_workspace = fields.find("workspace_bytes") != nullptr,
             has_level = fields.find("optimization_level") != nullptr;
  const std::int64_t workspace = has_workspace ? fields.integer("workspace_bytes") : 1;
  const std::int64_t level = has_level ? fields.integer("optimization_level") : 0;
  const bool has_cache = !fields.text("timing_cache", "").empty();
  const bool is_compatible = fields.has("hardware_compatibility") &&
                             fields.choice("hardware_compatibility", {"none", "ampere+", "same-cc"}) != "none";
  const bool version_compatible = fields.boolean("version_compatible", false);
  const bool strip_weights = fields.boolean("strip_weights", false), refittable = fields.boolean("refittable", false);
  fields.require_no_others();
  manifest.strip_weights = strip_weights;

  const std::vector<std::string> known{"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"};
  for (const std::string& target : targets) {
    if (std::find(known.begin(), known.end(), target) == known.end()) {
      refuse(fields.path("targets") + ": no compute capability of TensorRT-RTX is " + target.substr(0, 80));
    }
    if (std::count(targets.begin(), targets.end(), target) > 1) refuse(fields.path("targets") + " repeat themselves");
  }
  if (workspace < 1)
    refuse(fields.path("workspace_bytes") + ": a workspace of " + std::to_string(workspace) + " bytes");
  if (level < 0 || level > 5)
    refuse(fields.path("optimization_level") + ": optimization level " + std::to_string(level));
  manifest.strip_weights = strip_weights;
  if (strip_weights && refittable)
    refuse(fields.path() + ": an engine is either stripped (strip_weights) or refittable");
  const bool is_trt = backend == "tensorrt", is_rtx = backend == "tensorrt-rtx";
  const struct {
    const char* name;
    bool is_given, is_taken;
  } options[] = {
      {"targets", !targets.empty(), is_rtx},
      {"workspace_bytes", has_workspace, is_trt || is_rtx},
      {"optimization_level", has_level, is_trt || is_rtx},
      {"timing_cache", has_cache, is_trt},
      {"hardware_compatibility", is_compatible, is_trt},
      {"version_compatible", version_compatible, is_trt},
      {"strip_weights", strip_weights, is_trt},
      {"refittable", refittable, is_trt},
  };
  for (const auto& option : options) {
    if (option.is_given && !option.is_taken)
      refuse(fields.path(option.name) + ": " + backend.substr(0, 80) + " has no such option");
  }
}

/// specs.CalibrationSpec, with what its precision asks for.
inline void check_calibration(Fields fields, const std::string& precision) {
  const std::string method =
      fields.has("method") ? fields.choice("method", {"max", "percentile", "entropy", "mse", "auto"}) : "percentile";
  const double percentile = fields.number("percentile", 99.999);
  const std::int64_t images = fields.integer("max_images", 512);
  fields.boolean("equalize", true);
  fields.boolean("correct_biases", true);
  fields.require_no_others();
  if (!(percentile > 50 && percentile <= 100)) refuse(fields.path("percentile") + ": percentile is not in (50, 100]");
  if (images < 1) refuse(fields.path("max_images") + ": " + std::to_string(images) + " calibration images");
  if (precision == "fp8" && (method == "entropy" || method == "mse")) {
    refuse(fields.path("method") + ": " + method +
           " chooses ranges for the even steps of integers, which FP8 does not have");
  }
}

/// specs.BuildSpec
inline void read_spec(Fields fields, Manifest& manifest) {
  manifest.backend = fields.text("backend");
  manifest.precision = fields.choice("precision", {"fp32", "fp16", "bf16", "int8", "fp8"});
  const BatchRange batch = fields.has("batch") ? read_range(fields.object("batch")) : BatchRange{1, 8, 64};
  std::vector<BatchRange> profiles;
  fields.each("profiles",
              [&](const Json& item, const std::string& path) { profiles.push_back(read_range({item, path})); });
  if (fields.has("trt")) read_trt(fields.object("trt"), manifest);
  const bool is_calibrated = fields.find("calibration") != nullptr;
  if (is_calibrated) check_calibration(fields.object("calibration"), manifest.precision);
  const bool has_drop = fields.find("max_drop") != nullptr;
  const double drop = has_drop ? fields.number("max_drop") : 0;
  fields.require_no_others();

  if (!profiles.empty() && manifest.backend != "tensorrt" && manifest.backend != "tensorrt-rtx") {
    refuse(fields.path("profiles") + ": " + manifest.backend.substr(0, 80) + " has no profiles");
  }
  if (!profiles.empty()) check_profiles(profiles, batch, fields.path("profiles"));
  const bool is_quantized = manifest.precision == "int8" || manifest.precision == "fp8";
  if (is_calibrated && !is_quantized)
    refuse(fields.path("precision") + ": " + manifest.precision + " takes no calibration data");
  if (!is_calibrated && is_quantized)
    refuse(fields.path("precision") + ": " + manifest.precision + " needs calibration data");
  if (has_drop && manifest.precision != "int8")
    refuse(fields.path("max_drop") + ": " + manifest.precision + " takes no limit of accuracy");
  if (!(drop >= 0 && drop <= 100)) refuse(fields.path("max_drop") + ": a drop of points that is not in 0..100");
  manifest.batch_min = static_cast<int>(batch.min);
  manifest.batch_opt = static_cast<int>(batch.opt);
  manifest.batch_max = static_cast<int>(batch.max);
}

/// bundle.Requirements
inline Requirements read_requirements(Fields fields) {
  Requirements found;
  found.library = fields.text("library");
  found.version = fields.text("version", "");
  found.later_versions = fields.boolean("later_versions", false);
  found.compute_capabilities = fields.texts("compute_capabilities");
  found.least_compute_capability = fields.text("least_compute_capability", "");
  found.int8_dot_product = fields.boolean("int8_dot_product", false);
  return found;
}

/// environment.Environment: the machine that built it
inline void check_environment(Fields fields) {
  for (const char* name : {"os", "kernel", "python", "machine"}) fields.text(name);
  fields.integer("memory_bytes");
  Fields cpu = fields.object("cpu");
  cpu.text("model");
  cpu.integer("cores");
  cpu.texts("features");
  cpu.text("reason", "");
  Fields gpu = fields.object("gpu");
  gpu.each("gpus", [](const Json& item, const std::string& path) {
    Fields one(item, path);
    one.text("name");
    one.text("compute_capability");
    one.integer("memory_bytes");
    one.text("uuid", "");
  });
  for (const char* name : {"driver", "reason", "kernel_driver"}) gpu.text(name, "");
  if (!fields.has("libraries")) refuse(fields.path("libraries") + " is missing");
  fields.each("libraries", [](const Json& item, const std::string& path) {
    Fields library(item, path);
    library.text("name");
    library.text("version");
  });
}

/// bundle.HashChain and bundle.Measured: where it came from and what was measured
inline void check_history(Fields& fields) {
  Fields chain = fields.object("chain");
  for (const char* name : {"weights", "onnx", "lowered", "engine"}) chain.text(name);
  for (const char* name : {"images", "calibration"}) chain.text(name, "");
  Fields measured = fields.object("measured");
  for (const char* name : {"by", "inputs"}) measured.text(name);
  measured.integer("images");
  for (const char* name : {"agreement", "sqnr_db", "max_difference"}) measured.number(name);
  for (const char* name : {"latency_s", "speedup"}) {
    if (measured.find(name)) measured.number(name);
  }
}

/// A name that stays inside the bundle.
inline void check_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    refuse("it names '" + name.substr(0, 80) + "', which is not a file of the bundle");
  }
}

}  // namespace detail

/// Make a Manifest of its JSON.
///
/// Raises: Code::bundle, naming the first field that is at fault.
inline Manifest manifest_from_json(const Json& json) {
  Manifest manifest;
  detail::Fields fields(json, "");
  const std::int64_t version = fields.integer("schema_version");
  if (version > schema_version) {
    throw Error(
        Code::bundle,
        "schema_version is " + std::to_string(version) + ", this version reads up to " + std::to_string(schema_version),
        "upgrade resnet-deploy, or build the engine again");
  }
  manifest.name = fields.text("name");
  detail::read_card(fields.object("card"), manifest);
  detail::read_spec(fields.object("spec"), manifest);
  manifest.engine = fields.text("engine");
  fields.each_text("files", [&](const std::string& name, const std::string& digest) { manifest.files[name] = digest; });
  detail::check_history(fields);
  fields.text("cache_key");
  manifest.requires_ = detail::read_requirements(fields.object("requires"));
  fields.each_text("toolchain", [](const std::string&, const std::string&) {});
  detail::check_environment(fields.object("environment"));
  fields.texts("notes");
  detail::check_name(manifest.engine);
  for (const auto& file : manifest.files) detail::check_name(file.first);
  if (manifest.files.count(manifest.engine) == 0)
    detail::refuse("it has no digest for " + manifest.engine.substr(0, 80));
  return manifest;
}

}  // namespace resnet_deploy
