// What the CUDA kernels of task interaction take (formulas: mtlkit/operators/interaction). Computation is in float.
//
// B images, C channels, H x W pixels, L = H W, P projected channels. Products are tiles of 8 kRows rows by 64 columns:
// a block of 8 warps, each of which owns kRows rows. Forward a tile is P by pixels, and the depth is C.
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

// Rows of a warp of the projection.
inline constexpr int kProjectionRows[] = {4, 8, 12, 24};

// The first that holds so many projected channels in one block, else the last.
inline int projection_rows(int64_t projected) {
  for (const int rows : kProjectionRows) {
    if (projected <= rows * kTileWarps) return rows;
  }
  return kProjectionRows[3];
}

// How the work of a call is cut.
struct InteractionPlan {
  int64_t tiles;       // of an image, of 64 pixels
  int64_t sign_words;  // of a pixel: a warp's rows of the projection each
  int64_t sign_bytes;  // of a word
  int64_t row_blocks;  // of the projection
  int64_t shares;      // into which the gradients of the parameters cut all pixels
  int64_t chunks;      // of an image, of the gradient of the factors
};

inline InteractionPlan plan_interaction(const InteractionShape& s, int64_t multiprocessors) {
  const int rows = projection_rows(s.projected);
  InteractionPlan plan{};
  plan.tiles = ceil_div(s.pixels(), kTileColumns);
  plan.row_blocks = ceil_div(s.projected, rows * kTileWarps);
  plan.sign_words = plan.row_blocks * kTileWarps;
  plan.sign_bytes = rows <= 8 ? 1 : rows <= 16 ? 2 : 4;
  // two blocks for each multiprocessor, and each with work
  const int64_t blocks = std::max<int64_t>(1, plan.row_blocks * ceil_div(s.channels, kTileColumns));
  const int64_t items = std::max<int64_t>(1, s.batch * ceil_div(s.pixels(), kTileDepth));
  plan.shares = ceil_div(items, ceil_div(items, std::clamp<int64_t>(2 * multiprocessors / blocks, 1, items)));
  // four for each, of a tile of pixels or more
  const int64_t groups = std::max<int64_t>(1, s.batch * ceil_div(s.channels, kTileColumns));
  plan.chunks = std::clamp<int64_t>(4 * multiprocessors / groups, 1, plan.tiles);
  return plan;
}

struct InteractionReduce {
  InteractionShape shape;
  Tensor<3> x;          // (B, C, L)
  const float* weight;  // (P, C), null where nothing is pooled
  const float* bias;    // (P), null with weight
  const float* attn;    // (C), null for the plain mean
  float* mean;          // (B, C)
  float* pooled;        // (B, P), null with weight
  float* softmax;       // (B, 2), the largest logit and the sum of exponentials about it; null with attn
  void* signs;          // (B, sign_words, L), a bit for each row, set unless z <= 0; null if not wanted
};

struct InteractionReduceForward {
  InteractionReduce reduce;
  float* variance;  // (B, C)
  float* energy;    // (B), null if not wanted
  float* parts;     // (B, tiles, 2 C + P + 3): means, squares, sums, energy, largest logit, sum of exponentials
};

// The gradient of what was gathered, plus dy factors, the gradient of the scaling pass, where dy is given.
struct InteractionReduceBackward {
  InteractionReduce reduce;  // as it was; mean, pooled and softmax are read, signs too, but with attn written first
  int64_t shares;            // as the plan has it
  Tensor<3> dy;              // (B, C, L), may be absent
  const float* factors;      // (B, C), null with dy
  const float* dmean;        // (B, C), null for zeros, as the next three
  const float* dvariance;    // (B, C)
  const float* denergy;      // (B)
  const float* dpooled;      // (B, P)
  float* reached;            // (B, row_blocks, L), with attn: the product of dpooled and z
  float* logits;             // (B, L), with attn
  float* parts;              // (shares, P C + P + C), null where no gradient of a parameter is wanted
  Tensor<3> dx;              // (B, C, L) in the dtype of x, absent if not wanted
  float* dweight;            // (P, C), null if not wanted, as the next two
  float* dbias;              // (P)
  float* dattn;              // (C)
};

// Of every map either the pixels or the channels lie side by side, the same of all.
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
  int64_t chunks;  // as the plan has it
};

// From the sums to the factors; all tensors are contiguous.
struct InteractionGating {
  GatingShape shape;
  float tau, momentum, eps;
  bool alignment;           // signals: alignment, energy, spread; else the two variances
  bool training;            // the batch's statistics normalise, and the running ones follow
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
  float* kept;                    // for the backward pass, 2 B (F + C + Q) + 2 F elements
};

struct InteractionGatingForward {
  InteractionGating gating;
  float* normalised;  // (B, F), scratch
  float* factors;     // (B, C), 1 + w_seg (mu - 1)
  float* clf;         // (B, F)
};

struct InteractionGatingBackward {
  InteractionGating gating;        // as it was; all but the running statistics are read
  float* scratch;                  // B (4 C + 6 F + 2 Q + 5) elements
  const float* dfactors;           // (B, C), null for zeros, as the next five
  const float* dmu;                // (B, C)
  const float* dclf;               // (B, F)
  const float* denhanced;          // (B, F)
  const float* dgates;             // (B, 2)
  std::array<float*, 3> dsignals;  // (B) each
  float* dmean;                    // (B, C), null if not wanted, as all that follow
  float* dvariance;                // (B, C)
  float* denergy;                  // (B)
  float* dpooled;                  // (B, P)
  float* df;                       // (B, F)
  std::array<float*, kGatingWeights> dweights;
};

}  // namespace mtlkit::cuda
