// Regular files, read without following links and without waiting on anything that is none. POSIX.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "resnet_deploy/errors.hpp"
#include "resnet_deploy/sha256.hpp"

namespace resnet_deploy::detail {

/// The system's words for an error; std::strerror is not safe among threads.
inline std::string system_reason(int error) { return std::generic_category().message(error); }

/// A file open for reading; closed with the object.
class InputFile {
 public:
  /// Open the file `name` in `folder`. Where there is none, `is_open` is false and `absence` says why.
  ///
  /// A link is not followed: where it leads may change, and may lie outside the folder. A FIFO is not waited for.
  InputFile(const std::string& folder, const std::string& name)
      : path_(folder + '/' + name), handle_(::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) {
    struct stat status{};
    if (handle_ < 0) {
      const int error = errno;
      if (error == EACCES || error == EPERM || error == EMFILE || error == ENFILE || error == EIO) {
        throw Error(Code::file, path_ + ": " + system_reason(error), "choose a place you may read, or check the disk");
      }
      absence_ = error == ELOOP ? "is a link, not a regular file" : "is missing";
    } else if (::fstat(handle_, &status) != 0 || !S_ISREG(status.st_mode)) {
      absence_ = "is not a regular file";
    } else {
      size_ = static_cast<std::uint64_t>(status.st_size);
    }
  }
  InputFile(InputFile&& other) noexcept
      : path_(std::move(other.path_)),
        handle_(std::exchange(other.handle_, -1)),
        absence_(std::move(other.absence_)),
        size_(other.size_) {}
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() {
    if (handle_ >= 0) ::close(handle_);
  }

  bool is_open() const noexcept { return absence_.empty(); }
  const std::string& absence() const noexcept { return absence_; }
  std::uint64_t size() const noexcept { return size_; }  ///< In bytes, when it was opened.

  /// Read up to `size` bytes; fewer only at the end of the file.
  std::size_t read(void* out, std::size_t size) {
    std::size_t done = 0;
    while (done < size) {
      const ssize_t count = ::read(handle_, static_cast<char*>(out) + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw Error(Code::file, path_ + ": " + system_reason(errno), "check the disk");
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

  /// Read everything, as long as the file was when it was opened.
  std::string read_all() {
    std::string data(static_cast<std::size_t>(size_), '\0');
    data.resize(read(data.data(), data.size()));
    return data;
  }

  /// The digest of everything, as long as the file was when it was opened; lower-case hex.
  std::string sha256() {
    std::vector<char> piece(std::size_t{1} << 18);
    Sha256 digest;
    for (std::uint64_t left = size_; left > 0;) {
      const std::size_t count = read(piece.data(), left < piece.size() ? static_cast<std::size_t>(left) : piece.size());
      if (count == 0) break;
      digest.update(piece.data(), count);
      left -= count;
    }
    return digest.hex();
  }

 private:
  std::string path_;
  int handle_;
  std::string absence_;
  std::uint64_t size_ = 0;
};

inline bool is_folder(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0) return S_ISDIR(status.st_mode);
  if (errno == ENOENT || errno == ENOTDIR) return false;
  throw Error(Code::file, path + ": " + system_reason(errno), "check the path");
}

}  // namespace resnet_deploy::detail
