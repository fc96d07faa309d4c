// How selective_scan runs on a GPU: the plan of a call, and what the kernels take.
//
// A block owns a few channels of one sequence, all of one group, and scans their tokens tile by tile. Where the blocks
// of a call do not fill the GPU, L is cut into chunks as ss2d.h says.
//
// directional_scan runs on the same kernels: its directions are groups of channels, each with an order of its own.
#pragma once

#include "common/selective_scan.h"
#include "common/tensor.h"
#include "cuda/plan.h"

namespace mtlkit::cuda {

// The compiled kernels, as in ss2d.h, for both directions of the pass; the second list serves calls whose B or C are
// constant.
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
  int64_t layout;         // index in the tables above
  int64_t padded_states;  // N, rounded up to what the layout keeps
  int64_t tile_tokens;
  int64_t group_blocks;  // blocks along the channels of a group
  int64_t chunk_tiles;   // tiles per chunk; the last has what is left
  int64_t chunks;
  int64_t tiles;  // of a sequence
};

// The layout: of those that hold N in the fewest states, the first that fills the GPU, else the last; chunks as `split`
// has them.
SelectiveScanPlan plan_selective_scan(const SelectiveScanShape& shape, bool constant, const Gpu& gpu);

// The tokens that each group of channels visits, one a step; shape.tokens are the steps.
struct SelectiveScanOrder {
  bool by_token;             // whether a kernel for orders serves the call; it reads a token's channels side by side
  int64_t tokens;            // of a sequence
  const int32_t* table;      // (G, steps): the token of each step; null where all are visited as they come
  int64_t table_stride;      // from one of B tables to the next; 0 where there is one for all
  const int32_t* sequences;  // (B, tokens): where it changes, the state begins at zero; null for a single sequence
};

// Tensors of channels are (B, G, D / G, L); with an order, L are the tokens.
struct SelectiveScan {
  SelectiveScanShape shape;
  SelectiveScanPlan plan;
  SelectiveScanOrder order;
  Tensor<4> u, delta;
  Tensor<4> B, C;  // (B, G, N, L) where they vary with the input, else (D, N) in the first two strides
  bool variable_B, variable_C, delta_softplus;
  const float* A;              // (D, N), as are all below: contiguous
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
  const float* ungated;   // as the forward pass left it, null without z
  Tensor<3> dlast_state;  // (B, D, N), may be absent
  Tensor<4> du, ddelta;
  Tensor<4> dz;           // absent with z
  float* drows;           // (group blocks, B, G, tokens, 2 N): of B and C where they vary
  float* dparameters;     // (B chunks, D, 3 N + 2): of A, constant B and C, D and delta_bias
  float* dinitial_state;  // (B, D, N), null if not wanted
};

}  // namespace mtlkit::cuda
