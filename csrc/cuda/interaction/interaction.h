// Arguments and plan of the CUDA kernels of task interaction (formulas: mtlkit/operators/interaction). Computation is
// in float.
//
// B images, C channels, H x W pixels, L = H W, P projected channels. A block computes a tile of a product, 8 kRows rows
// by 64 columns; each of its 8 warps owns kRows rows. In the forward pass the rows are P, the columns pixels, and the
// depth is C.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/interaction.h"
#include "common/tensor.h"
#include "cuda/plan.h"

namespace mtlkit::cuda {

inline constexpr int kTileWarps = 8, kTileThreads = 32 * kTileWarps;
inline constexpr int kTileColumns = 64, kTileDepth = 32;

// Rows of the projection per warp.
inline constexpr int kProjectionRows[] = {4, 8, 12, 24};

// The first that fits all projected channels into one block, else the last.
inline int projection_rows(int64_t projected) {
  for (const int rows : kProjectionRows) {
    if (projected <= rows * kTileWarps) return rows;
  }
  return kProjectionRows[3];
}

// How the work of a call is divided.
struct InteractionPlan {
  int64_t tiles;       // per image, of 64 pixels each
  int64_t sign_words;  // per pixel; a word holds the signs of one warp's rows of the projection
  int64_t sign_bytes;  // per word
  int64_t row_blocks;  // of the projection
  int64_t shares;      // parts of the pixels for the parameter gradients
  int64_t chunks;      // per image, for the gradient of the factors
};

inline InteractionPlan plan_interaction(const InteractionShape& s, int64_t multiprocessors) {
  const int rows = projection_rows(s.projected);
  InteractionPlan plan{};
  plan.tiles = ceil_div(s.pixels(), kTileColumns);
  plan.row_blocks = ceil_div(s.projected, rows * kTileWarps);
  plan.sign_words = plan.row_blocks * kTileWarps;
  plan.sign_bytes = rows <= 8 ? 1 : rows <= 16 ? 2 : 4;
  // two blocks per multiprocessor, but no blocks without work
  const int64_t blocks = std::max<int64_t>(1, plan.row_blocks * ceil_div(s.channels, kTileColumns));
  const int64_t items = std::max<int64_t>(1, s.batch * ceil_div(s.pixels(), kTileDepth));
  plan.shares = ceil_div(items, ceil_div(items, std::clamp<int64_t>(2 * multiprocessors / blocks, 1, items)));
  // four blocks per multiprocessor, each with at least one tile of pixels
  const int64_t groups = std::max<int64_t>(1, s.batch * ceil_div(s.channels, kTileColumns));
  plan.chunks = std::clamp<int64_t>(4 * multiprocessors / groups, 1, plan.tiles);
  return plan;
}

struct InteractionReduce {
  InteractionShape shape;
  Tensor<3> x;          // (B, C, L)
  const float* weight;  // (P, C), null without pooling
  const float* bias;    // (P), null if weight is
  const float* attn;    // (C), null for the plain mean
  float* mean;          // (B, C)
  float* pooled;        // (B, P), null if weight is
  float* softmax;       // (B, 2), the largest logit and the sum of exponentials relative to it; null without attn
  void* signs;          // (B, sign_words, L), one bit per row, set unless z <= 0; null if not wanted
};

struct InteractionReduceForward {
  InteractionReduce reduce;
  float* variance;  // (B, C)
  float* energy;    // (B), null if not wanted
  float* parts;     // (B, tiles, 2 C + P + 3): means, squares, sums, energy, largest logit, sum of exponentials
};

// The gradient of the reduction, plus that of the scaling pass, dy factors, if dy is given.
struct InteractionReduceBackward {
  InteractionReduce reduce;  // as in forward; reads mean, pooled, softmax and signs; with attn it writes signs first
  int64_t shares;            // from the plan
  Tensor<3> dy;              // (B, C, L), may be absent
  const float* factors;      // (B, C), null without dy
  const float* dmean;        // (B, C), null for zeros, like the next three
  const float* dvariance;    // (B, C)
  const float* denergy;      // (B)
  const float* dpooled;      // (B, P)
  float* reached;            // (B, row_blocks, L), scratch with attn: the product of dpooled and z
  float* logits;             // (B, L), scratch with attn
  float* parts;              // (shares, P C + P + C), null if no parameter gradient is wanted
  Tensor<3> dx;              // (B, C, L) in the dtype of x, absent if not wanted
  float* dweight;            // (P, C), null if not wanted, like the next two
  float* dbias;              // (P)
  float* dattn;              // (C)
};

// Either the pixels or the channels are contiguous, the same in all maps.
struct InteractionScale {
  InteractionShape shape;
  Tensor<3> x;           // (B, C, L)
  const float* factors;  // (B, C)
  Tensor<3> y;           // (B, C, L) in the dtype of x
};

struct InteractionFactors {
  InteractionShape shape;
  Tensor<3> x;     // (B, C, L)
  Tensor<3> dy;    // (B, C, L) in the dtype of x
  float* parts;    // (B, chunks, C), whose sum is the gradient
  int64_t chunks;  // from the plan
};

// The layers from the sums to the factors; all tensors are contiguous.
struct InteractionGating {
  GatingShape shape;
  float tau, momentum, eps;
  bool alignment;           // signals: alignment, energy, spread; else the two variances
  bool training;            // normalise by the batch's statistics and update the running ones
  const float* mean;        // (B, C)
  const float* variance;    // (B, C), read for two signals
  const float* energy;      // (B), read for three
  const float* pooled;      // (B, P)
  const float* f;           // (B, F)
  const float* normaliser;  // (2), null for the mean over the batch
  std::array<float*, kGatingWeights> weights;
  float* norm_mean;               // (F)
  float* norm_var;                // (F)
  float* mu;                      // (B, C)
  float* enhanced;                // (B, F)
  float* gates;                   // (B, 2)
  std::array<float*, 3> signals;  // (B) each
  float* kept;                    // saved for the backward pass, 2 B (F + C + Q) + 2 F elements
};

struct InteractionGatingForward {
  InteractionGating gating;
  float* normalised;  // (B, F), scratch
  float* factors;     // (B, C), 1 + w_seg (mu - 1)
  float* clf;         // (B, F)
};

struct InteractionGatingBackward {
  InteractionGating gating;        // the arguments of forward; all but the running statistics are read
  float* scratch;                  // B (4 C + 6 F + 2 Q + 5) elements
  const float* dfactors;           // (B, C), null for zeros, like the next five
  const float* dmu;                // (B, C)
  const float* dclf;               // (B, F)
  const float* denhanced;          // (B, F)
  const float* dgates;             // (B, 2)
  std::array<float*, 3> dsignals;  // (B) each
  float* dmean;                    // (B, C), null if not wanted, like all that follow
  float* dvariance;                // (B, C)
  float* denergy;                  // (B)
  float* dpooled;                  // (B, P)
  float* df;                       // (B, F)
  std::array<float*, kGatingWeights> dweights;
};

}  // namespace mtlkit::cuda
