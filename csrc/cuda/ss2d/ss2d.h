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
//
// Backward, each block of channels leaves its part of the gradient of x_dbl. So that these parts stay small beside u,
// the main kernel is launched for one pair after the other, which then share a map, for some images after others
// (slices), and for some tiles of every scan's way after others (windows); after each launch the parts are added up.
// What a window leaves to the next are the gradients of the states, and the sums over tokens, to which it adds.
#pragma once

#include "common/ss2d.h"
#include "common/tensor.h"
#include "cuda/plan.h"

namespace mtlkit::cuda {

// The compiled kernels: states per lane, lanes per channel, channels per block and tokens per tile. The first two give
// the states that a kernel keeps, N rounded up. Fewer channels or tokens need less shared memory and make more blocks.
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

// How the states are kept between the passes; the same for every shape with these N and R on the same GPU.
struct SS2DTiling {
  int64_t states;  // N, rounded up; 0 if no kernel serves
  int64_t tokens;  // per tile
};

struct SS2DPlan {
  int64_t layout;         // index in the table of the direction
  int64_t padded_states;  // N, rounded up to what the layout keeps
  int64_t tiles;
  int64_t channel_blocks;  // blocks along D
  int64_t chunk_tiles;     // tiles per chunk; the last has what is left
  int64_t chunks;
  int64_t images;        // per launch
  int64_t window_tiles;  // of each chunk, per launch
  int64_t pixels;        // of an image in a launch, at most
  int64_t pairs;         // of opposite directions, per launch: 1 or 2

  constexpr int64_t scans() const { return 2 * pairs; }  // of an image in a launch
  constexpr int64_t tiles_of(int64_t chunk) const {
    return chunk == chunks - 1 ? tiles - chunk * chunk_tiles : chunk_tiles;
  }
  constexpr int64_t longest_chunk() const { return std::max(chunk_tiles, tiles_of(chunks - 1)); }
};

// The backward layout that comes first of those that hold N and fit a block's shared memory.
SS2DTiling ss2d_tiling(int64_t states, int64_t rank, const Gpu& gpu);

// Of the layouts with this tiling, the first that fills the GPU, else the last; chunks as `split` has them; windows and
// slices backward alone.
SS2DPlan plan_ss2d(const SS2DShape& shape, const Gpu& gpu, bool backward);

// Shared memory of a block of a layout. N and R are read of the shape.
int64_t ss2d_fwd_shared(int64_t layout, const SS2DShape& shape);
int64_t ss2d_bwd_shared(int64_t layout, const SS2DShape& shape);

struct SS2D {
  SS2DShape shape;
  SS2DPlan plan;
  Tensor<4> u;             // (B, D, H, W)
  Tensor<5> x_dbl;         // (B, H, W, 4, M), contiguous, at an address that is a multiple of 16
  const float* dt_weight;  // (4, D, R), as are all below: contiguous
  const float* dt_bias;    // (4, D)
  const float* A_logs;     // (4 D, N)
  const float* Ds;         // (4 D)
  float* checkpoints;      // (B, 4, tiles - 1, D, padded states): the state before each tile but the first on the
                           // scan's way; null if not wanted
  float* ends;             // (B, scans, chunks - 1, D, padded states), in the order of the scan's way; null with one
  float* steps;            // (B, scans, chunks - 1, D)
};

struct SS2DForward {
  SS2D scan;
  float* maps[2];  // of a pair of directions each: (B, L, D)
};

struct SS2DBackward {
  SS2D scan;
  Tensor<4> dy;       // (B, D, H, W)
  void* dx_dbl;       // like x_dbl
  float* maps[2];     // (B, L, D), of du; the same for both where a launch serves one pair
  float* carries;     // (images, scans, chunks, D, padded states), of a launch; null with one window
  float* parts;       // (stored_parts, images, scans, pixels, M), of a launch: chunk by chunk
  float* sums;        // (images * chunks - 1, scans, D, N + R + 2): see SumsOverTokens
  float* dA_logs;     // (4 D, N), as are all below: like the parameters, but float
  float* ddt_weight;  // (4, D, R)
  float* ddt_bias;    // (4, D)
  float* dDs;         // (4 D)
};

// Parts of the gradient of x_dbl for the blocks of channels from this one on; in float32 the first block's part lies in
// dx_dbl itself.
constexpr int64_t first_stored_part(const SS2D& p) { return p.x_dbl.dtype == DType::kFloat32 ? 1 : 0; }
constexpr int64_t stored_parts(const SS2D& p) { return p.plan.channel_blocks - first_stored_part(p); }

}  // namespace mtlkit::cuda
