// Arguments of the four-direction 2-D selective scan on the CPU (letters: common/ss2d.h).
#pragma once

#include "common/ss2d.h"
#include "common/tensor.h"

namespace mtlkit {

struct SS2DForward {
  SS2DShape shape;
  Tensor<4> u;          // (B, D, H, W)
  Tensor<4> y;          // (B, D, H, W)
  const void* x_dbl;    // (B, L, 4, M), contiguous, in the type of computation: time step, B, C
  Tensor<3> dt_weight;  // (4, D, R)
  Tensor<2> dt_bias;    // (4, D)
  Tensor<2> A_logs;     // (4 D, N)
  Tensor<1> Ds;         // (4 D)
  void* checkpoints;    // (B, 4, checkpoints, N, D), contiguous, in the type of computation; null if not wanted
  bool use_double;      // the type of computation: double or float
  int threads;
};

struct SS2DBackward {
  SS2DForward forward;  // the arguments of forward; y is not read
  Tensor<4> dy;         // (B, D, H, W)
  Tensor<4> du;         // (B, D, H, W)
  void* dx_dbl;         // like x_dbl
  void* ddt_weight;     // (4, D, R); like all below, contiguous and in the type of computation
  void* ddt_bias;       // (4, D)
  void* dA_logs;        // (4 D, N)
  void* dDs;            // (4 D)
};

}  // namespace mtlkit
