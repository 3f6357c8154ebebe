// The version, as in version.py; a test holds one against the other.
#pragma once

namespace resnet_deploy {

inline constexpr const char* version = "0.1.0";

}  // namespace resnet_deploy
