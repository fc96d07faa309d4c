// Arguments of the selective scan along any orders of the tokens, on the CPU.
//
// B samples, D channels, H x W tokens in rows (H = 1 for a sequence), L = H * W, K directions of T steps each, N
// states, R rank of the time step, M = R + 2 N.
#pragma once

#include "common/ss2d.h"
#include "common/tensor.h"

namespace mtlkit {

struct DirectionalScanShape {
  int64_t batch, directions, channels, height, width, steps, states, rank;

  constexpr int64_t tokens() const { return height * width; }
  constexpr int64_t row() const { return rank + 2 * states; }
  constexpr int64_t pitch() const { return directions * row(); }
  constexpr int64_t checkpoints() const { return (steps + kCheckpointTokens - 1) / kCheckpointTokens; }
};

struct DirectionalScanForward {
  DirectionalScanShape shape;
  bool own_inputs;          // whether each direction has its own u; else they share one, and the stride of K is 0
  bool merge;               // whether y is the sum over the directions, and its stride of K is 0
  Tensor<5> u;              // (B, K, D, H, W)
  Tensor<5> y;              // (B, K, D, H, W)
  const void* x_dbl;        // (B, L, K, M), contiguous, in the type of computation: time step, B, C
  Tensor<3> dt_weight;      // (K, D, R)
  Tensor<2> dt_bias;        // (K, D)
  Tensor<2> A_logs;         // (K D, N)
  Tensor<1> Ds;             // (K D)
  const int32_t* order;     // (K, T), or (B, K, T): the token of each step; contiguous, like all below
  bool own_orders;          // whether each sample has its own order
  const uint8_t* starts;    // (B, K, T), 1 for steps before which the state is reset to zeros; null for none
  Tensor<4> initial_state;  // (B, K, D, N), may be absent: zeros
  void* last_state;         // (B, K, D, N) in the type of computation; null if not wanted
  void* checkpoints;        // (B, K, checkpoints, N, D) in the type of computation; null if not wanted
  bool use_double;          // the type of computation: double or float
  int threads;
};

struct DirectionalScanBackward {
  DirectionalScanForward forward;  // the arguments of forward; y and last_state are not read
  Tensor<5> dy;                    // (B, K, D, H, W), stride 0 of K if the outputs were merged
  Tensor<4> dlast_state;           // (B, K, D, N), may be absent: zeros
  Tensor<5> du;                    // (B, K, D, H, W), stride 0 of K if u is shared
  void* dx_dbl;                    // like x_dbl
  void* ddt_weight;                // (K, D, R); like all below, contiguous and in the type of computation
  void* ddt_bias;                  // (K, D)
  void* dA_logs;                   // (K D, N)
  void* dDs;                       // (K D)
  void* dinitial_state;            // (B, K, D, N); null if not wanted
};

}  // namespace mtlkit
