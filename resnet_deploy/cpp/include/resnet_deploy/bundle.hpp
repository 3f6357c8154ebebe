// The engine bundle on the disk (bundle.py): opened, and its files held against their digests.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "resnet_deploy/files.hpp"
#include "resnet_deploy/manifest_fields.hpp"
#include "resnet_deploy/onnx_wire.hpp"

namespace resnet_deploy {

inline constexpr std::uint64_t max_manifest_bytes = std::uint64_t{32} << 20;  ///< 100,000 classes fill a third of it.
inline constexpr std::uint64_t max_file_bytes = std::uint64_t{4}
                                                << 30;  ///< ONNX files end at 2 GiB, and plans hold the same weights.

namespace detail {

inline constexpr const char* manifest_name = "manifest.json";
inline constexpr const char* rebuild = "build the engine again with `resnet-deploy build`";
inline constexpr const char* give_bundle = "give a folder that `resnet-deploy build` made";

/// Hold a manifest against its own digest, which is over its canonical JSON without the field `sha256`.
inline std::string checked_digest(Json& json) {
  const auto found = json.find("sha256");
  const std::string claimed = found != json.end() && found->is_string() ? found->get<std::string>() : "";
  json.erase("sha256");
  if (claimed != sha256(canonical_json(json))) {
    throw Error(Code::bundle, "it was altered: its SHA-256 differs from its field sha256");
  }
  return claimed;
}

}  // namespace detail

/// A folder that `resnet-deploy build` made, with a sound manifest; its files are checked by `verify_files` and `read`.
///
/// They must be regular files: links are refused, for where they lead may change, or lie outside the folder.
struct Bundle {
  std::string path;
  Manifest manifest;
  std::string digest;  ///< The manifest's own, which stands for the whole bundle.

  std::string file_path(const std::string& name) const { return path + '/' + name; }

  /// Hold every file against the manifest.
  ///
  /// Raises: Code::bundle, naming the first that is missing or was altered; Code::file where one cannot be read.
  void verify_files() const {
    for (const auto& [name, expected] : manifest.files) {
      if (open(name).sha256() != expected) refuse_altered(name);
    }
  }

  /// Read a file, and hold the very bytes that are returned against their digest, whatever becomes of the file.
  ///
  /// Raises: Code::bundle, naming it where it is missing, was altered, or is ONNX that keeps weights in other files;
  /// Code::file where it cannot be read.
  std::string read(const std::string& name) const {
    const auto expected = manifest.files.find(name);
    if (expected == manifest.files.end()) throw Error(Code::bundle, path + " has no " + name, detail::rebuild);
    std::string data = open(name).read_all();
    if (sha256(data) != expected->second) refuse_altered(name);
    if (name.size() > 5 && name.compare(name.size() - 5, 5, ".onnx") == 0) require_whole(name, data);
    return data;
  }

 private:
  detail::InputFile open(const std::string& name) const {
    detail::InputFile file(path, name);
    if (!file.is_open()) throw Error(Code::bundle, path + ": " + name + ' ' + file.absence(), detail::rebuild);
    if (file.size() > max_file_bytes)
      throw Error(Code::bundle, path + ": " + name + " is larger than 4 GiB", detail::rebuild);
    return file;
  }

  /// Refuse an ONNX file that keeps weights in other files, which would be in no digest.
  void require_whole(const std::string& name, const std::string& data) const {
    std::string reason = " keeps its weights in other files";
    try {
      if (!detail::has_external_tensors(data)) return;
    } catch (const Error& error) {
      reason = std::string(" is a damaged ONNX file: ") + error.what();
    }
    throw Error(Code::bundle, path + ": " + name + reason, detail::rebuild);
  }

  [[noreturn]] void refuse_altered(const std::string& name) const {
    const std::string reason = " was altered: its SHA-256 differs from files." + name + " in the manifest";
    throw Error(Code::bundle, path + ": " + name + reason, detail::rebuild);
  }
};

/// Make a Bundle of the text of a manifest.
///
/// Raises: Code::bundle, naming what is at fault without the path.
inline Bundle bundle_from_text(const std::string& path, const std::string& text) {
  Json json = parse_json(text);
  Manifest manifest = manifest_from_json(json);
  return {path, std::move(manifest), detail::checked_digest(json)};
}

/// Read a bundle's manifest.
///
/// Raises:
///   Code::file: There is no bundle at `path`, or it cannot be read.
///   Code::bundle: The manifest is damaged, was altered, or is of a later schema than this library knows.
inline Bundle open_bundle(const std::string& path) {
  // A zero byte would end the name that the system is given.
  if (path.find('\0') != std::string::npos || !detail::is_folder(path)) {
    throw Error(Code::file, path + " is not an engine bundle", detail::give_bundle);
  }
  const std::string where = path + ": " + detail::manifest_name;
  detail::InputFile file(path, detail::manifest_name);
  if (!file.is_open()) throw Error(Code::file, where + ' ' + file.absence(), detail::give_bundle);
  if (file.size() > max_manifest_bytes) throw Error(Code::bundle, where + " is larger than 32 MiB", detail::rebuild);
  try {
    return bundle_from_text(path, file.read_all());
  } catch (const Error& error) {
    if (error.code() != Code::bundle) throw;
    throw Error(Code::bundle, where + ": " + error.what(), error.hint().empty() ? detail::rebuild : error.hint());
  }
}

}  // namespace resnet_deploy
