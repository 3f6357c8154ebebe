// What this machine is: the same probes, by the same rules, as environment.py.
#pragma once

#include <sched.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace resnet_deploy {

namespace detail {

/// A small file of the kernel's, without the space around it; empty where the kernel does not have it.
inline std::string kernel_text(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  const auto begin = all.find_first_not_of(" \t\n");
  return begin == std::string::npos ? "" : all.substr(begin, all.find_last_not_of(" \t\n") + 1 - begin);
}

/// A number in decimal digits; -1 for anything else, such as "max" and "-1".
inline long long whole_number(const std::string& text) {
  const auto is_digit = [](unsigned char character) { return std::isdigit(character) != 0; };
  const bool is_number = !text.empty() && text.size() <= 18 && std::all_of(text.begin(), text.end(), is_digit);
  return is_number ? std::stoll(text) : -1;
}

/// The numbers of the logical processors that this process may use.
inline std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  for (int most = CPU_SETSIZE; most <= 1 << 16; most *= 2) {  // the kernel's own mask may be larger than the default
    cpu_set_t* mask = CPU_ALLOC(most);
    const std::size_t size = CPU_ALLOC_SIZE(most);
    const bool known = mask != nullptr && sched_getaffinity(0, size, mask) == 0;
    for (int cpu = 0; known && cpu < most; ++cpu) {
      if (CPU_ISSET_S(cpu, size, mask)) cpus.push_back(cpu);
    }
    CPU_FREE(mask);
    if (known) return cpus;
  }
  for (unsigned cpu = 0; cpu < std::max(1U, std::thread::hardware_concurrency()); ++cpu) cpus.push_back(int(cpu));
  return cpus;
}

}  // namespace detail

/// Count the threads worth starting: one per physical core this process may use, within a container's CPU quota.
///
/// system: Where the kernel tells, for tests.
inline int compute_threads(const std::string& system = "/sys") {
  std::set<std::string> cores;
  for (const int cpu : detail::usable_cpus()) {
    const std::string number = std::to_string(cpu);
    const std::string siblings =
        detail::kernel_text(system + "/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? number : siblings);
  }
  std::istringstream limit(detail::kernel_text(system + "/fs/cgroup/cpu.max"));
  std::string quota, period;
  limit >> quota >> period;
  if (period.empty()) {  // control groups of version 1; no quota is -1 there
    quota = detail::kernel_text(system + "/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = detail::kernel_text(system + "/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  const long long share = detail::whole_number(quota), of = detail::whole_number(period);
  const auto counted = static_cast<long long>(cores.size());
  return static_cast<int>(std::max(1LL, share >= 0 && of > 0 ? std::min(counted, share / of) : counted));
}

/// Whether this CPU has an INT8 dot product, so that full-range weights are safe.
///
/// cpuinfo: What the kernel says of it, for tests.
inline bool has_int8_dot_product(const std::string& cpuinfo = "/proc/cpuinfo") {
  static constexpr std::array<const char*, 5> names{"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"};
  std::ifstream file(cpuinfo);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (std::find(names.begin(), names.end(), word) != names.end()) return true;
    }
    return false;  // all processors have the same
  }
  return false;
}

}  // namespace resnet_deploy
