// One block of SHA-256: in plain C++, and by the instructions that x86 has for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define RESNET_DEPLOY_SHA_INSTRUCTIONS 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define RESNET_DEPLOY_SHA_INSTRUCTIONS 0
#endif

namespace resnet_deploy::detail {

using Sha256State = std::array<std::uint32_t, 8>;  ///< a to h
using Sha256Compress = void(Sha256State& state, const std::uint8_t* block);

/// K of FIPS 180-4, 4.2.2.
alignas(16) inline constexpr std::array<std::uint32_t, 64> sha256_constants{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::uint32_t rotated(std::uint32_t word, int by) noexcept { return word >> by | word << (32 - by); }

/// FIPS 180-4, 6.2.2: one block of 64 bytes.
inline void sha256_compress_plain(Sha256State& state, const std::uint8_t* block) noexcept {
  std::array<std::uint32_t, 64> w;
  for (std::size_t t = 0; t < 16; ++t, block += 4) {
    w[t] = std::uint32_t{block[0]} << 24 | std::uint32_t{block[1]} << 16 | std::uint32_t{block[2]} << 8 | block[3];
  }
  for (std::size_t t = 16; t < 64; ++t) {
    const std::uint32_t s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
    const std::uint32_t s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (std::size_t t = 0; t < 64; ++t) {
    const std::uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
    const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
    const std::uint32_t t2 = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const Sha256State sum{a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < sum.size(); ++i) state[i] += sum[i];
}

#if RESNET_DEPLOY_SHA_INSTRUCTIONS

/// Whether this CPU has SHA256RNDS2 and its kin, SSSE3 and SSE4.1 (Intel's manual, CPUID leaves 1 and 7).
inline bool has_sha_instructions() noexcept {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned ssse3 = 1U << 9, sse41 = 1U << 19, sha = 1U << 29;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & ssse3) == 0 || (ecx & sse41) == 0) return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & sha) != 0;
}

/// The same, four rounds at a time.
///
/// The instructions take the state as (a b e f) and (c d g h), highest first. The schedule needs the last 16 words
/// only: m[i % 4] holds w[4i..4i+3], and is overwritten by the words 16 later.
__attribute__((target("sha,ssse3,sse4.1"))) inline void sha256_compress_x86(Sha256State& state,
                                                                            const std::uint8_t* block) noexcept {
  const __m128i swap_bytes = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  auto* const low = reinterpret_cast<__m128i*>(state.data());
  auto* const high = reinterpret_cast<__m128i*>(state.data() + 4);
  const auto* const words = reinterpret_cast<const __m128i*>(block);
  const auto* const constants = reinterpret_cast<const __m128i*>(sha256_constants.data());

  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(low), 0xb1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(high), 0x1b);
  const __m128i abef_before = _mm_alignr_epi8(cdab, efgh, 8), cdgh_before = _mm_blend_epi16(efgh, cdab, 0xf0);
  __m128i abef = abef_before, cdgh = cdgh_before;
  __m128i m[4];
  for (int i = 0; i < 16; ++i) {
    __m128i& now = m[i & 3];
    if (i < 4) {
      now = _mm_shuffle_epi8(_mm_loadu_si128(words + i), swap_bytes);
    } else {
      const __m128i last = m[(i + 3) & 3], seventh = _mm_alignr_epi8(last, m[(i + 2) & 3], 4);
      now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, m[(i + 1) & 3]), seventh), last);
    }
    const __m128i keyed = _mm_add_epi32(now, _mm_load_si128(constants + i));
    cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
    abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
  }
  abef = _mm_shuffle_epi32(_mm_add_epi32(abef, abef_before), 0x1b);
  cdgh = _mm_shuffle_epi32(_mm_add_epi32(cdgh, cdgh_before), 0xb1);
  _mm_storeu_si128(low, _mm_blend_epi16(abef, cdgh, 0xf0));
  _mm_storeu_si128(high, _mm_alignr_epi8(cdgh, abef, 8));
}

#endif

/// What this CPU does it fastest with.
inline Sha256Compress* sha256_compress() noexcept {
#if RESNET_DEPLOY_SHA_INSTRUCTIONS
  static const bool has_instructions = has_sha_instructions();
  if (has_instructions) return sha256_compress_x86;
#endif
  return sha256_compress_plain;
}

}  // namespace resnet_deploy::detail
