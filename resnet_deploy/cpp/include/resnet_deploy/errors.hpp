// What can go wrong, as one exception with a code; the C interface hands the code on.
#pragma once

#include <stdexcept>
#include <string>

namespace resnet_deploy {

/// Kinds of errors. The numbers are part of the C interface (resnet_deploy.h) and never change.
enum class Code : int {
  ok = 0,
  argument = 1,     ///< The caller's arguments make no sense.
  file = 2,         ///< Something is missing or cannot be read.
  bundle = 3,       ///< The bundle is damaged, was altered, or does not fit this machine.
  data = 4,         ///< An image cannot be preprocessed: no pixels (width or height below 1), too many, too elongated.
  unsupported = 5,  ///< This build of the library has no such backend.
  backend = 6,      ///< The backend refused the engine or a call.
  memory = 7,       ///< There is not enough memory.
  internal = 8,     ///< A mistake in this library.
  accuracy = 9,     ///< Answers differ from those that the bundle keeps by more than is allowed.
};

/// One line that says what was wrong, and another that says what to do.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

  Code code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  Code code_;
  std::string hint_;
};

}  // namespace resnet_deploy
