// Arguments of selective_state_update on the CPU.
//
// B sequences, H heads of D channels, N states, G groups of heads that share B and C.
#pragma once

#include "common/tensor.h"

namespace mtlkit {

struct SelectiveStateUpdate {
  int64_t batch, heads, channels, states, groups;
  Tensor<4> state;                     // (rows, H, D, N), written in place
  Tensor<3> x;                         // (B, H, D)
  Tensor<3> dt;                        // (B, H, D)
  Tensor<3> A;                         // (H, D, N)
  Tensor<3> B;                         // (B, G, N)
  Tensor<3> C;                         // (B, G, N)
  Tensor<2> D;                         // (H, D), may be absent
  Tensor<3> z;                         // (B, H, D), may be absent
  Tensor<2> dt_bias;                   // (H, D), may be absent
  const int32_t* state_batch_indices;  // (B), each sequence's row, negative for none; null if row b is sequence b's
  Tensor<3> y;                         // (B, H, D)
  bool dt_softplus;
  bool use_double;  // the type of computation: double or float
  int threads;
};

}  // namespace mtlkit
