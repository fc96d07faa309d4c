// How causal_conv1d runs on a GPU (letters: common/causal_conv1d.h; computation is in float).
//
// A thread owns a pack of channels in a run of tokens and walks along the run with the last tokens in registers, so
// that each token is read once, except those just before a run. A block is 8 packs by 32 runs. Runs are numbered
// consecutively over the sequences.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/causal_conv1d.h"
#include "common/tensor.h"

namespace mtlkit::cuda {

inline constexpr int kRunPacks = 8, kRunColumns = 32, kRunThreads = kRunPacks * kRunColumns;
inline constexpr int kRunSums =
    kMaxWidth + 1;  // parameter gradients per channel: taps, the current token's first, and bias

struct CausalConv1d {
  CausalConv1dShape shape;
  Tensor<3> x;                  // (B, D, L)
  const float* weight;          // (D, w)
  const float* bias;            // (D), null for none
  const int32_t* seq_idx;       // (B, L), null for one sequence
  const float* initial_states;  // (B, D, w - 1), null for zeros
  bool silu;
};

struct CausalConv1dForward {
  CausalConv1d conv;
  Tensor<3> y;  // (B, D, L) in the dtype of x
};

struct CausalConv1dBackward {
  CausalConv1d conv;
  Tensor<3> dy, dx;        // (B, D, L) in the dtype of x
  float* partials;         // (parts, D, 5): the sums of each part of the runs for the gradients of taps and bias
  int64_t parts;           // from causal_conv1d_parts
  float* dinitial_states;  // (B, D, w - 1), null if not wanted
};

// Runs of equal length, except the last of a sequence.
struct Runs {
  int64_t length, count;  // tokens per run, runs per sequence

  Runs(int64_t tokens, int64_t longest) {
    count = (tokens + longest - 1) / longest;
    length = (tokens + count - 1) / count;
    count = (tokens + length - 1) / length;
  }
};

// Longest runs, for contiguous tokens and for contiguous channels. With contiguous tokens, neighbouring threads have
// neighbouring runs: 8 tokens are a sector of 32 bytes in float.
inline constexpr int64_t kTokensInside = 8, kChannelsInside = 16, kChannelsInsideBackward = 32;

// The number of parts of the runs, one per block: two blocks per multiprocessor, but no block without work.
inline int64_t causal_conv1d_parts(const CausalConv1dShape& shape, int64_t multiprocessors) {
  const int64_t columns = shape.batch * Runs(shape.tokens, kTokensInside).count;
  const int64_t wanted = 2 * multiprocessors / ((shape.channels + 2 * kRunPacks - 1) / (2 * kRunPacks));
  return std::max<int64_t>(1, std::min(wanted, (columns + kRunColumns - 1) / kRunColumns));
}

}  // namespace mtlkit::cuda
