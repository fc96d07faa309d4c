// Arguments of the 1-D selective scan on the CPU (letters: common/selective_scan.h).
#pragma once

#include "common/selective_scan.h"
#include "common/tensor.h"

namespace mtlkit {

struct SelectiveScanForward {
  SelectiveScanShape shape;
  Tensor<3> u;      // (B, D, L)
  Tensor<3> delta;  // (B, D, L)
  Tensor<2> A;      // (D, N)
  Tensor<4> B, C;   // (B, G, N, L) if they vary with the input, else (D, N) in the first two strides
  bool variable_B, variable_C;
  Tensor<1> D;           // (D), may be absent
  Tensor<3> z;           // (B, D, L), may be absent
  Tensor<1> delta_bias;  // (D), may be absent
  bool delta_softplus;
  Tensor<3> out;      // (B, D, L)
  void* last_state;   // (B, D, N), contiguous, in the type of computation; null if not wanted
  void* checkpoints;  // (B, checkpoints, N, D), contiguous, in the type of computation; null if not wanted
  bool use_double;
  int threads;
};

struct SelectiveScanBackward {
  SelectiveScanForward forward;  // the arguments of forward; out is not read
  Tensor<3> dout;                // (B, D, L)
  Tensor<3> dlast_state;         // (B, D, N), may be absent
  Tensor<3> du, ddelta;          // (B, D, L)
  Tensor<3> dz;                  // (B, D, L), absent if z is
  void* dA;                      // (D, N); like all below, contiguous and in the type of computation
  void* dB;                      // (B, G, L, N) if B varies, else (D, N)
  void* dC;                      // likewise
  void* dD;                      // (D), null if D is absent
  void* ddelta_bias;             // (D), null if delta_bias is absent
};

}  // namespace mtlkit
