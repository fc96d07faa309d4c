// Arguments of LayerNorm over the channels, times SiLU(z) where a gate z is given:
//
//   out = ((x - mean) / sqrt(var + eps) * weight + bias) * SiLU(z),   SiLU(z) = z / (1 + exp(-z))
//
// Channels are contiguous, rows may lie apart. Mean and variance (biased) are taken in float32.
#pragma once

#include "tensor.h"

namespace mtlkit {

struct NormGateForward {
  int64_t rows, channels;
  Tensor<2> x;          // (rows, D); stride[1] is 1, here and below
  Tensor<2> z;          // (rows, D) in the dtype of out, may be absent
  const float* weight;  // (D), null for ones
  const float* bias;    // (D), null for zeros
  Tensor<2> out;        // (rows, D)
  float eps;
};

}  // namespace mtlkit
