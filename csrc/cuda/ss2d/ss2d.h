// How ss2d runs on a GPU: the plan of a call, and the kernels' arguments.
//
// L is cut into tiles of kCheckpointTokens pixels, along rows for the directions 0 and 2 (pair 0) and along columns for
// 1 and 3 (pair 1). A block owns a few channels of one image and one pair: half of its threads scan the tiles upwards,
// half downwards, so that each half visits every tile once. The half that reaches a tile first writes its result, the
// other adds; the order is always the same, and no atomics are needed. The two pairs produce two maps, whose sum is y
// (or du).
//
// If the blocks of a call do not fill the GPU, L is also cut into chunks of whole tiles. A first kernel computes each
// chunk's last state from a zero start, and the sum of its time steps; the main kernel combines these to get the state
// at the start of every chunk.
//
// Backward, each block of channels writes its part of the gradient of x_dbl. To keep these parts small compared with u,
// the main kernel is launched several times: for one pair after the other, which then share a map; for some images at a
// time (slices); or for some tiles of each scan at a time (windows). The parts are added after each launch. A window
// passes the gradients of the states to the next window, which also adds to its sums over tokens.
#pragma once

#include "common/ss2d.h"
#include "common/tensor.h"
#include "cuda/plan.h"

namespace mtlkit::cuda {

// The compiled kernels: states per lane, lanes per channel, channels per block and tokens per tile. The product of the
// first two is the number of states, N rounded up. Layouts with fewer channels or tokens need less shared memory; fewer
// channels also make more blocks.
#define MTLKIT_SS2D_FORWARD_LAYOUTS(X) \
  X(0, 1, 1, 64, 16)                   \
  X(1, 2, 1, 64, 16)                   \
  X(2, 4, 1, 64, 16)                   \
  X(3, 4, 2, 32, 16)                   \
  X(4, 8, 2, 32, 32)                   \
  X(5, 4, 4, 16, 32)                   \
  X(6, 8, 4, 16, 32)                   \
  X(7, 8, 8, 8, 16)                    \
  X(8, 8, 16, 4, 16)                   \
  X(9, 8, 32, 4, 8)
#define MTLKIT_SS2D_BACKWARD_LAYOUTS(X) \
  X(0, 1, 1, 64, 16)                    \
  X(1, 2, 1, 64, 16)                    \
  X(2, 4, 1, 64, 16)                    \
  X(3, 4, 2, 32, 16)                    \
  X(4, 4, 4, 32, 32)                    \
  X(5, 4, 4, 16, 32)                    \
  X(6, 4, 8, 16, 32)                    \
  X(7, 4, 16, 8, 16)                    \
  X(8, 4, 32, 4, 16)                    \
  X(9, 8, 32, 4, 8)

// How the states are saved between the passes; the same for every shape with these N and R on the same GPU.
struct SS2DTiling {
  int64_t states;  // N, rounded up; 0 if there is no kernel
  int64_t tokens;  // per tile
};

struct SS2DPlan {
  int64_t layout;         // index in the list for forward or backward
  int64_t padded_states;  // N, rounded up to the layout's states
  int64_t tiles;
  int64_t channel_blocks;  // blocks along D
  int64_t chunk_tiles;     // tiles per chunk; the last has the remainder
  int64_t chunks;
  int64_t images;        // per launch
  int64_t window_tiles;  // of each chunk, per launch
  int64_t pixels;        // per image and launch, at most
  int64_t pairs;         // of opposite directions, per launch: 1 or 2

  constexpr int64_t scans() const { return 2 * pairs; }  // per image and launch
  constexpr int64_t tiles_of(int64_t chunk) const {
    return chunk == chunks - 1 ? tiles - chunk * chunk_tiles : chunk_tiles;
  }
  constexpr int64_t longest_chunk() const { return std::max(chunk_tiles, tiles_of(chunks - 1)); }
};

// The tiling of the first backward layout that fits N and a block's shared memory.
SS2DTiling ss2d_tiling(int64_t states, int64_t rank, const Gpu& gpu);

// Takes, of the layouts with this tiling, the first that fills the GPU, else the last; `split` gives the chunks; only
// backward has windows and slices.
SS2DPlan plan_ss2d(const SS2DShape& shape, const Gpu& gpu, bool backward);

// Shared memory of a block of a layout. Of the shape, only N and R matter.
int64_t ss2d_fwd_shared(int64_t layout, const SS2DShape& shape);
int64_t ss2d_bwd_shared(int64_t layout, const SS2DShape& shape);

struct SS2D {
  SS2DShape shape;
  SS2DPlan plan;
  Tensor<4> u;             // (B, D, H, W)
  Tensor<5> x_dbl;         // (B, H, W, 4, M), contiguous, at an address that is a multiple of 16
  const float* dt_weight;  // (4, D, R); contiguous, like all below
  const float* dt_bias;    // (4, D)
  const float* A_logs;     // (4 D, N)
  const float* Ds;         // (4 D)
  float* checkpoints;      // (B, 4, tiles - 1, D, padded states): the state before each tile but the first in scan
                           // order; null if not wanted
  float* ends;             // (B, scans, chunks - 1, D, padded states), in scan order; null with one chunk
  float* steps;            // (B, scans, chunks - 1, D)
};

struct SS2DForward {
  SS2D scan;
  float* maps[2];  // (B, L, D) each, one per pair of directions
};

struct SS2DBackward {
  SS2D scan;
  Tensor<4> dy;       // (B, D, H, W)
  void* dx_dbl;       // like x_dbl
  float* maps[2];     // (B, L, D), of du; one shared map if launches process one pair at a time
  float* carries;     // (images, scans, chunks, D, padded states), per launch; null with one window
  float* parts;       // (stored_parts, images, scans, pixels, M), per launch, chunk by chunk
  float* sums;        // (images * chunks - 1, scans, D, N + R + 2): see SumsOverTokens
  float* dA_logs;     // (4 D, N); this and all below are like the parameters, but float
  float* ddt_weight;  // (4, D, R)
  float* ddt_bias;    // (4, D)
  float* dDs;         // (4 D)
};

// The first block of channels whose part of the gradient of x_dbl goes to `parts`; in float32 the part of block 0 goes
// directly to dx_dbl.
constexpr int64_t first_stored_part(const SS2D& p) { return p.x_dbl.dtype == DType::kFloat32 ? 1 : 0; }
constexpr int64_t stored_parts(const SS2D& p) { return p.plan.channel_blocks - first_stored_part(p); }

}  // namespace mtlkit::cuda
