// How selective_scan runs on a GPU: the plan of a call, and the kernels' arguments.
//
// A block owns a few channels of one sequence, all in one group, and scans their tokens tile by tile. If the blocks of
// a call do not fill the GPU, L is cut into chunks as described in ss2d.h.
//
// directional_scan runs on the same kernels: its directions are groups of channels, each with its own order.
#pragma once

#include "common/selective_scan.h"
#include "common/tensor.h"
#include "cuda/plan.h"

namespace mtlkit::cuda {

// The compiled kernels, as in ss2d.h, for forward and backward; the second list is for calls with constant B or C.
#define MTLKIT_SELECTIVE_SCAN_LAYOUTS(X) \
  X(0, 1, 1, 64, 16)                     \
  X(1, 2, 1, 64, 16)                     \
  X(2, 4, 1, 64, 16)                     \
  X(3, 4, 2, 64, 16)                     \
  X(4, 4, 4, 32, 32)                     \
  X(5, 4, 4, 16, 32)                     \
  X(6, 4, 8, 16, 32)                     \
  X(7, 4, 16, 8, 16)                     \
  X(8, 4, 32, 4, 16)                     \
  X(9, 8, 32, 4, 8)
#define MTLKIT_SELECTIVE_SCAN_CONSTANT_LAYOUTS(X) \
  X(10, 4, 4, 32, 32)                             \
  X(11, 8, 32, 4, 8)

struct SelectiveScanPlan {
  int64_t layout;         // index in the lists above
  int64_t padded_states;  // N, rounded up to the layout's states
  int64_t tile_tokens;
  int64_t group_blocks;  // blocks per group of channels
  int64_t chunk_tiles;   // tiles per chunk; the last has the remainder
  int64_t chunks;
  int64_t tiles;  // per sequence
};

// Takes, of the layouts that fit N with the fewest states, the first that fills the GPU, else the last; `split` gives
// the chunks.
SelectiveScanPlan plan_selective_scan(const SelectiveScanShape& shape, bool constant, const Gpu& gpu);

// The tokens that each group of channels visits, one per step; shape.tokens is the number of steps.
struct SelectiveScanOrder {
  bool by_token;             // whether to use a kernel for orders; it reads the channels of a token contiguously
  int64_t tokens;            // per sequence
  const int32_t* table;      // (G, steps): the token of each step; null to visit all in sequence order
  int64_t table_stride;      // between the tables of the B sequences; 0 if they share one
  const int32_t* sequences;  // (B, tokens): the state restarts at zero where it changes; null for a single sequence
};

// Tensors with channels are (B, G, D / G, L); with an order, L counts tokens, not steps.
struct SelectiveScan {
  SelectiveScanShape shape;
  SelectiveScanPlan plan;
  SelectiveScanOrder order;
  Tensor<4> u, delta;
  Tensor<4> B, C;  // (B, G, N, L) if they vary with the input, else (D, N) in the first two strides
  bool variable_B, variable_C, delta_softplus;
  const float* A;              // (D, N); contiguous, like all below
  const float* D;              // (D), null for zeros
  const float* delta_bias;     // (D), null for zeros
  const float* initial_state;  // (B, D, N), null for zeros
  float* checkpoints;          // (B, tiles, D, padded states): the state before each tile; null if not wanted
  float* ends;                 // (B, chunks, D, padded states), null with one chunk
  float* steps;                // (B, chunks, D), null with one chunk
};

struct SelectiveScanForward {
  SelectiveScan scan;
  Tensor<4> z;  // may be absent, as it is with an order
  Tensor<4> out;
  float* ungated;     // (B, D, L), contiguous: the output before the gate; null if not wanted
  float* last_state;  // (B, D, N), contiguous
};

struct SelectiveScanBackward {
  SelectiveScan scan;
  Tensor<4> dout;
  Tensor<4> z;            // may be absent
  const float* ungated;   // from the forward pass; null without z
  Tensor<3> dlast_state;  // (B, D, N), may be absent
  Tensor<4> du, ddelta;
  Tensor<4> dz;           // absent with z
  float* drows;           // (group blocks, B, G, tokens, 2 N): of B and C if they vary
  float* dparameters;     // (B chunks, D, 3 N + 2): of A, constant B and C, D and delta_bias
  float* dinitial_state;  // (B, D, N), null if not wanted
};

}  // namespace mtlkit::cuda
