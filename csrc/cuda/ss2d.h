// How ss2d runs on a GPU: the plan of a call, and what the kernels take.
//
// L is cut into tiles of kCheckpointTokens pixels, in the order of the rows for the directions 0 and 2 (pair 0) and of
// the columns for 1 and 3 (pair 1). A block owns a few channels of one image and one pair: half of its threads scan the
// tiles upwards, half downwards, so that every tile is passed once by each. Who comes first writes, who comes second
// adds, and the order is always the same: no atomics. The two pairs leave two maps, whose sum is y (or du).
//
// Where the blocks of a call do not fill the GPU, L is also cut into chunks of whole tiles. A first kernel finds the
// state that each chunk leaves behind, starting from zero, and the sum of its time steps; the main kernel then starts
// every chunk from what those before it leave together.
#pragma once

#include <algorithm>

#include "common/ss2d.h"

namespace mtlkit::cuda {

// States per lane, lanes per channel and channels per block of each compiled kernel, for N up to their product. Sixteen
// states have two: fewer states per lane make twice the blocks, for calls that do not fill the GPU.
#define MTLKIT_SS2D_FORWARD_LAYOUTS(X) \
  X(0, 1, 1, 64)                       \
  X(1, 2, 1, 64)                       \
  X(2, 4, 1, 64)                       \
  X(3, 4, 2, 32)                       \
  X(4, 4, 4, 16)                       \
  X(5, 8, 2, 32)                       \
  X(6, 8, 4, 16)                       \
  X(7, 8, 8, 8)                        \
  X(8, 8, 16, 4)                       \
  X(9, 8, 32, 4)
#define MTLKIT_SS2D_BACKWARD_LAYOUTS(X) \
  X(0, 1, 1, 64)                        \
  X(1, 2, 1, 64)                        \
  X(2, 4, 1, 64)                        \
  X(3, 4, 2, 64)                        \
  X(4, 4, 4, 32)                        \
  X(5, 4, 8, 16)                        \
  X(6, 4, 16, 8)                        \
  X(7, 4, 32, 4)                        \
  X(8, 8, 32, 4)

struct SS2DPlan {
  int layout;              // index in the table above
  int64_t padded_states;   // N, rounded up to what the layout keeps
  int64_t channel_blocks;  // blocks along D
  int64_t chunk_tiles;     // tiles per chunk
  int64_t chunks;
};

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// The layout: the smallest that holds N; for sixteen states forward the wide one, where that makes 16 warps per
// multiprocessor. The chunks: none where the blocks give every multiprocessor 8 warps; else as many as make 16, of at
// least four tiles each, if that makes three or more (two would cost more than they bring, since the states are found
// twice).
inline SS2DPlan plan_ss2d(const SS2DShape& shape, int multiprocessors, bool backward) {
  constexpr int64_t kEnoughWarps = 8, kWantedWarps = 16, kLeastTiles = 4, kLeastChunks = 3, kWarpThreads = 32;
  struct Row {
    int index, states, lanes, channels;
  };
#define MTLKIT_ROW(index, states, lanes, channels) Row{index, states, lanes, channels},
  static constexpr Row kForward[] = {MTLKIT_SS2D_FORWARD_LAYOUTS(MTLKIT_ROW)};
  static constexpr Row kBackward[] = {MTLKIT_SS2D_BACKWARD_LAYOUTS(MTLKIT_ROW)};
#undef MTLKIT_ROW
  const auto warps = [&](const Row& row) {
    const int64_t blocks = shape.batch * 2 * ceil_div(shape.channels, row.channels);
    return blocks * (2 * row.channels * row.lanes / kWarpThreads);
  };
  const Row* row = backward ? kBackward : kForward;
  while (row->states * row->lanes < shape.states) ++row;
  constexpr int kNarrow = 4;
  if (!backward && row->index == kNarrow && warps(row[1]) >= kWantedWarps * multiprocessors) ++row;

  const int64_t tiles = shape.checkpoints();
  SS2DPlan plan{row->index, row->states * row->lanes, ceil_div(shape.channels, row->channels), tiles, 1};
  if (const int64_t have = std::max<int64_t>(warps(*row), 1); have < kEnoughWarps * multiprocessors) {
    const int64_t wanted = ceil_div(kWantedWarps * multiprocessors, have);
    const int64_t chunk_tiles = std::max(kLeastTiles, ceil_div(tiles, wanted));
    if (const int64_t chunks = ceil_div(tiles, chunk_tiles); chunks >= kLeastChunks) {
      plan.chunk_tiles = chunk_tiles;
      plan.chunks = chunks;
    }
  }
  return plan;
}

struct SS2DCuda {
  SS2DShape shape;
  SS2DPlan plan;
  Tensor<4> u;             // (B, D, H, W)
  Tensor<5> x_dbl;         // (B, H, W, 4, M), contiguous, at an address that is a multiple of 16
  const float* dt_weight;  // (4, D, R), as are all below: contiguous
  const float* dt_bias;    // (4, D)
  const float* A_logs;     // (4 D, N)
  const float* Ds;         // (4 D)
  float* checkpoints;      // (B, 4, tiles, D, padded states): the state before each tile; null if not wanted
  float* ends;             // (B, 4, chunks, D, padded states), null with one chunk
  float* steps;            // (B, 4, chunks, D), null with one chunk
};

struct SS2DCudaForward {
  SS2DCuda scan;
  float* maps;  // (2, B, L, D)
};

struct SS2DCudaBackward {
  SS2DCuda scan;
  Tensor<4> dy;        // (B, D, H, W)
  float* maps;         // (2, B, L, D), of du
  float* drows;        // (channel blocks, B, L, 4, M)
  float* dparameters;  // (B chunks, 4, D, N + R + 2): of A = -exp(A_logs), dt_weight, dt_bias and Ds
};

}  // namespace mtlkit::cuda
