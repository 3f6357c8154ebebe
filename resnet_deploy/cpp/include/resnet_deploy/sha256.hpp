// SHA-256 (FIPS 180-4), fed in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "resnet_deploy/sha256_block.hpp"

namespace resnet_deploy {

/// The digest of everything that was given to `update`.
class Sha256 {
 public:
  void update(const void* data, std::size_t size) noexcept {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    length_ += size;
    if (held_ > 0) {
      const std::size_t taken = size < block_.size() - held_ ? size : block_.size() - held_;
      if (taken > 0) std::memcpy(block_.data() + held_, bytes, taken);
      held_ += taken;
      bytes += taken;
      size -= taken;
      if (held_ < block_.size()) return;
      compress(block_.data());
      held_ = 0;
    }
    for (; size >= block_.size(); bytes += block_.size(), size -= block_.size()) compress(bytes);
    if (size > 0) std::memcpy(block_.data(), bytes, size);
    held_ = size;
  }

  /// Close the message and return its digest as lower-case hex; the object is of no further use.
  std::string hex() {
    const std::uint64_t bits = length_ * 8;
    const std::uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (held_ != block_.size() - sizeof bits) update(&zero, 1);
    std::array<std::uint8_t, sizeof bits> tail{};
    for (std::size_t i = 0; i < tail.size(); ++i) tail[i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
    update(tail.data(), tail.size());
    std::string text;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[(word >> shift) & 15];
    }
    return text;
  }

 private:
  void compress(const std::uint8_t* block) noexcept { compress_(state_, block); }

  detail::Sha256Compress* compress_ = detail::sha256_compress();
  detail::Sha256State state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> block_{};
  std::size_t held_ = 0;      ///< Bytes waiting in block_.
  std::uint64_t length_ = 0;  ///< Bytes so far.
};

inline std::string sha256(const std::string& data) {
  Sha256 digest;
  digest.update(data.data(), data.size());
  return digest.hex();
}

}  // namespace resnet_deploy
