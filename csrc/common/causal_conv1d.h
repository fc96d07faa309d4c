// Depthwise causal convolution of a few taps, plus bias, then optionally SiLU: sizes.
//
// B sequences, D channels, L tokens, w taps.
#pragma once

#include <cstdint>

namespace mtlkit {

inline constexpr int kMaxWidth = 4;

struct CausalConv1dShape {
  int64_t batch, channels, tokens, width;
};

}  // namespace mtlkit
