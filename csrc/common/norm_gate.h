// Arguments of LayerNorm over the channels, times SiLU(z) where a gate z is given:
//
//   out = ((x - mean) / sqrt(var + eps) * weight + bias) * SiLU(z),   SiLU(z) = z / (1 + exp(-z))
//
// Channels are contiguous, rows may lie apart. Mean and variance (biased) are taken in the type of computation.
#pragma once

#include "tensor.h"

namespace mtlkit {

struct NormGateCpuForward {
  int64_t rows, channels;
  Tensor<2> x;       // (rows, D); stride[1] is 1, here and below
  Tensor<2> z;       // (rows, D), may be absent
  Tensor<1> weight;  // (D), absent for ones
  Tensor<1> bias;    // (D), absent for zeros
  Tensor<2> out;     // (rows, D)
  double eps;
  bool use_double;  // the type of computation: double or float
  int threads;
};

struct NormGateCpuBackward {
  NormGateCpuForward forward;  // as it was; out is not read
  Tensor<2> dout;              // (rows, D)
  Tensor<2> dx;                // (rows, D)
  Tensor<2> dz;                // (rows, D), absent with z
  void* dweight;               // (D), as is dbias: contiguous, in the type of computation; null with weight
  void* dbias;                 // (D), null with bias
};

}  // namespace mtlkit
