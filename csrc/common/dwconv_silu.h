// Depthwise 3 x 3 convolution with padding 1, plus bias, then SiLU: sizes.
//
// B images, D channels, H x W pixels.
#pragma once

#include <cstdint>

namespace mtlkit {

inline constexpr int kTaps = 9;

struct DwconvSiluShape {
  int64_t batch, channels, height, width;
};

}  // namespace mtlkit
