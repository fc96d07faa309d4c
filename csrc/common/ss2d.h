// Arguments of the four-direction 2-D selective scan.
//
// B images, D channels, H x W pixels, L = H * W, N states, R rank of the time step, M = R + 2 N.
// The four scan orders: 0 row-major, 1 column-major, 2 the reverse of 0, 3 the reverse of 1.
#pragma once

#include "tensor.h"

namespace mtlkit {

inline constexpr int kDirections = 4;
// One state per channel is kept for the backward pass every this many tokens.
inline constexpr int kCheckpointTokens = 32;

struct SS2DShape {
  int64_t batch, channels, height, width, states, rank;

  constexpr int64_t tokens() const { return height * width; }
  constexpr int64_t row() const { return rank + 2 * states; }
  constexpr int64_t checkpoints() const { return (tokens() + kCheckpointTokens - 1) / kCheckpointTokens; }
};

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
  SS2DForward forward;  // as it was; y is not read
  Tensor<4> dy;         // (B, D, H, W)
  Tensor<4> du;         // (B, D, H, W)
  void* dx_dbl;         // like x_dbl
  void* ddt_weight;     // (4, D, R), as are all below: contiguous, in the type of computation
  void* ddt_bias;       // (4, D)
  void* dA_logs;        // (4 D, N)
  void* dDs;            // (4 D)
};

}  // namespace mtlkit
