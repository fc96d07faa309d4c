// LayerNorm over the channels, times SiLU(z) if a gate z is given:
//
//   out = ((x - mean) / sqrt(var + eps) * weight + bias) * SiLU(z),   SiLU(z) = z / (1 + exp(-z))
//
// Channels are contiguous; rows may have gaps between them. Mean and variance (biased) are computed in the type of
// computation.
#pragma once

#include <cstdint>

namespace mtlkit {

struct NormGateShape {
  int64_t rows, channels;
};

}  // namespace mtlkit
