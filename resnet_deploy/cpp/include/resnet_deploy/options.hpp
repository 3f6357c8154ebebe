// How an engine is opened.
#pragma once

#include <string>

#include "resnet_deploy/errors.hpp"

namespace resnet_deploy {

/// As the arguments of resnet_deploy.load in Python.
struct EngineOptions {
  int threads = 0;   ///< CPU threads for all that runs at once; 0 for one per physical core within a container's quota.
  int requests = 1;  ///< Batches that may be under way at once: of one long call, or of calls from several threads.
};

/// Hold options against what makes sense.
///
/// Raises: Code::argument.
inline void check_options(const EngineOptions& options) {
  constexpr int most = 1024;  // as in Python
  if (options.threads < 0 || options.threads > most) {
    throw Error(Code::argument, std::to_string(options.threads) + " threads",
                "give a number up to " + std::to_string(most) + ", or 0 for every core");
  }
  if (options.requests < 1 || options.requests > most) {
    throw Error(Code::argument, std::to_string(options.requests) + " requests",
                "give a number from 1 to " + std::to_string(most));
  }
}

}  // namespace resnet_deploy
