// Runners lent to calls: several threads share what an engine has, and none touches another's runner.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "resnet_deploy/runner.hpp"

namespace resnet_deploy::detail {

/// The runners of an engine. Safe to use from several threads.
class Pool {
 public:
  explicit Pool(Runners runners) : runners_(std::move(runners)) {
    for (const auto& runner : runners_) idle_.push_back(runner.get());
  }

  /// Take up to `most` runners, at least one; wait while there is none.
  std::vector<Runner*> take(std::size_t most) {
    std::unique_lock<std::mutex> lock(mutex_);
    returned_.wait(lock, [this] { return !idle_.empty(); });
    const auto count = static_cast<std::ptrdiff_t>(std::clamp(most, std::size_t{1}, idle_.size()));
    std::vector<Runner*> taken(idle_.end() - count, idle_.end());
    idle_.erase(idle_.end() - count, idle_.end());
    return taken;
  }

  void give_back(const std::vector<Runner*>& runners) noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      idle_.insert(idle_.end(), runners.begin(), runners.end());  // never grows beyond what it began with
    }
    returned_.notify_all();
  }

  const Runner& first() const { return *runners_.front(); }

 private:
  Runners runners_;
  std::vector<Runner*> idle_;
  std::mutex mutex_;
  std::condition_variable returned_;
};

/// Runners that one call has for itself, used in turns; waited for and given back at its end, however it ends.
class Lease {
 public:
  Lease(Pool& pool, std::size_t most) : pool_(pool), runners_(pool.take(most)), busy_(runners_.size()) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  ~Lease() {
    for (std::size_t index = 0; index < runners_.size(); ++index) {
      try {
        wait(index);  // what was begun writes to the caller's memory until it is done
      } catch (...) {  // NOLINT: the call has failed already, and says why
      }
    }
    pool_.give_back(runners_);
  }

  /// Begin a batch on the runner whose turn it is, once that is done with its last one.
  void start(const void* images, int batch, float* logits) {
    const std::size_t index = turn_++ % runners_.size();
    wait(index);
    busy_[index] = true;  // before, for a start that failed may have begun something
    runners_[index]->start(images, batch, logits);
  }

  /// Wait for every batch that was begun.
  void finish() {
    for (std::size_t index = 0; index < runners_.size(); ++index) wait(index);
  }

  Runner& first() { return *runners_.front(); }
  std::size_t size() const noexcept { return runners_.size(); }

 private:
  void wait(std::size_t index) {
    if (!busy_[index]) return;
    busy_[index] = false;
    runners_[index]->wait();
  }

  Pool& pool_;
  std::vector<Runner*> runners_;
  std::vector<bool> busy_;
  std::size_t turn_ = 0;
};

}  // namespace resnet_deploy::detail
