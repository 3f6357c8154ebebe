// Whether this CPU multiplies and adds up 8-bit integers in one step (environment.Cpu.has_vnni in Python).
#pragma once

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cstdint>

namespace resnet_deploy {

/// AVX512-VNNI, AVX-VNNI or AMX-INT8 where the system saves their registers; dotprod or i8mm on ARM.
///
/// Bits by Intel's Software Developer's Manual, CPUID leaf 7 and XCR0, and by Linux's asm/hwcap.h.
inline bool has_int8_dot_product() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  const auto has = [](std::uint32_t word, int bit) { return (word >> bit & 1) != 0; };
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, 27)) return false;  // OSXSAVE
  std::uint32_t saved = 0, upper = 0;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  const bool saves_ymm = (saved & 0x6) == 0x6, saves_zmm = (saved & 0xe6) == 0xe6;
  const bool saves_tiles = (saved & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((has(ecx, 11) && saves_zmm) || (has(edx, 25) && saves_tiles)) return true;
  return eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && has(eax, 4) && saves_ymm;
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20, kInt8Matrix = 1UL << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  return (getauxval(AT_HWCAP) & kDotProduct) != 0 || (getauxval(AT_HWCAP2) & kInt8Matrix) != 0;
#else
  return false;
#endif
}

}  // namespace resnet_deploy
