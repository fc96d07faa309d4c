// Arguments of causal_conv1d on the CPU (letters: common/causal_conv1d.h).
#pragma once

#include "common/causal_conv1d.h"
#include "common/tensor.h"

namespace mtlkit {

struct CausalConv1dForward {
  CausalConv1dShape shape;
  Tensor<3> x;               // (B, D, L)
  Tensor<2> weight;          // (D, w), w from 2 to 4
  Tensor<1> bias;            // (D), may be absent
  const int32_t* seq_idx;    // (B, L) contiguous, may be null
  Tensor<3> initial_states;  // (B, D, w - 1), may be absent; always absent with seq_idx
  Tensor<3> y;               // (B, D, L) in the dtype of x
  bool silu;
  bool use_double;  // the type of computation: double if x is double, else float
  int threads;
};

struct CausalConv1dBackward {
  CausalConv1dForward forward;  // the arguments of forward; y is not read
  Tensor<3> dy;                 // (B, D, L) in the dtype of x, like dx
  Tensor<3> dx;                 // (B, D, L)
  void* dweight;                // (D, w); like dbias, contiguous and in the type of computation
  void* dbias;                  // (D), may be null
  Tensor<3> dinitial_states;    // (B, D, w - 1), may be absent
};

// Decoding step: the next tokens of sequences, given a state of the last ones.
struct CausalConv1dUpdate {
  CausalConv1dShape shape;
  int64_t kept;                       // tokens per row of the state, at least w - 1
  Tensor<3> x;                        // (B, D, L)
  Tensor<3> conv_state;               // (rows, D, kept), written in place
  Tensor<2> weight;                   // (D, w)
  Tensor<1> bias;                     // (D), may be absent
  const int32_t* cache_seqlens;       // (B), null if the state is not a ring buffer
  const int32_t* conv_state_indices;  // (B), each sequence's row, negative for none; null if row b is sequence b's
  Tensor<3> y;                        // (B, D, L)
  bool silu;
  bool use_double;  // the type of computation: double or float
  int threads;
};

}  // namespace mtlkit
