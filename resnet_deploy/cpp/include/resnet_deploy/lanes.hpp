// Four numbers at once, and floating point as it is written.
//
// Python's results are products and sums rounded one by one. A compiler may fuse a product with the sum that follows
// (GCC does by default where the CPU has it, `-ffp-contract=fast`), which rounds once and moves the last bit. Values
// that pass through `rounded` are not fused, whatever -ffp-contract says, so that this flag, -march and -O are free.
// What cannot be held off from within is refused here: reordering, reciprocals, wider intermediate results.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#if !defined(__GNUC__)
#error "resnet_deploy's preprocessing needs g++ or clang (vectors as an extension of C++)"
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "resnet_deploy's preprocessing is exact to the bit: compile without -ffast-math, -Ofast and their parts"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "resnet_deploy's preprocessing was written for little-endian machines"
#endif
#if FLT_EVAL_METHOD != 0
#error "resnet_deploy's preprocessing needs float and double rounded as such (on 32-bit x86: -msse2 -mfpmath=sse)"
#endif

namespace resnet_deploy {

using Bytes4 = std::uint8_t __attribute__((vector_size(4)));
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Shorts8 = std::uint16_t __attribute__((vector_size(16)));
using Ints4 = std::int32_t __attribute__((vector_size(16)));
using Floats4 = float __attribute__((vector_size(16)));

/// Hand back a value out of the compiler's sight, so that it is rounded before it is used.
template <class Number>
inline Number rounded(Number value) noexcept {
#if defined(__x86_64__)
  __asm__("" : "+x"(value));
  return value;
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
  return value;
#else
  volatile Number stored = value;
  return stored;
#endif
}

/// Four bytes from any address, as whole numbers: three channels of a pixel, and one byte of the next.
inline Ints4 load4(const std::uint8_t* bytes) noexcept {
#if defined(__clang__)
  Bytes4 four;
  std::memcpy(&four, bytes, sizeof four);
  return __builtin_convertvector(four, Ints4);
#else  // GCC converts byte by byte (12 does), but knows these as instructions that interleave with zeros
  std::int32_t four;
  std::memcpy(&four, bytes, sizeof four);
  const Bytes16 lanes = reinterpret_cast<Bytes16>(Ints4{four, 0, 0, 0});
  const Bytes16 doubled =
      __builtin_shuffle(lanes, Bytes16{}, Bytes16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  return reinterpret_cast<Ints4>(
      __builtin_shuffle(reinterpret_cast<Shorts8>(doubled), Shorts8{}, Shorts8{0, 8, 1, 9, 2, 10, 3, 11}));
#endif
}

}  // namespace resnet_deploy
