// Arguments of dwconv_silu on the CPU (letters: common/dwconv_silu.h).
#pragma once

#include "common/dwconv_silu.h"
#include "common/tensor.h"

namespace mtlkit {

struct DwconvSiluForward {
  DwconvSiluShape shape;
  Tensor<4> x;       // (B, D, H, W)
  Tensor<3> weight;  // (D, 3, 3)
  Tensor<1> bias;    // (D), may be absent
  Tensor<4> y;       // (B, D, H, W)
  bool use_double;   // the type of computation: double or float
  int threads;
};

struct DwconvSiluBackward {
  DwconvSiluForward forward;  // as it was; y is not read
  Tensor<4> dy;               // (B, D, H, W)
  Tensor<4> dx;               // (B, D, H, W)
  void* dweight;              // (D, 3, 3), as is dbias: contiguous, in the type of computation
  void* dbias;                // (D), null with bias
};

}  // namespace mtlkit
