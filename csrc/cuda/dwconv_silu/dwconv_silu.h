// How dwconv_silu runs on a GPU (letters: common/dwconv_silu.h; computation is in float).
//
// A thread owns a pack of channels in one column of a strip of rows and goes down the strip, so that a row is read from
// memory once; neighbouring columns read it from the cache. A block is 8 packs by 32 columns. Columns are numbered
// consecutively: first those of the first strip of the first image, then those of its second strip, and so on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/dwconv_silu.h"
#include "common/tensor.h"

namespace mtlkit::cuda {

inline constexpr int kConvPacks = 8, kConvColumns = 32, kConvThreads = kConvPacks * kConvColumns;
inline constexpr int kConvSums = kTaps + 1;  // parameter gradients per channel: taps and bias

struct DwconvSilu {
  DwconvSiluShape shape;
  Tensor<4> x;          // (B, D, H, W)
  const float* weight;  // (D, 3, 3)
  const float* bias;    // (D), null for none
};

struct DwconvSiluForward {
  DwconvSilu conv;
  Tensor<4> y;  // (B, D, H, W) in the dtype of x
};

struct DwconvSiluBackward {
  DwconvSilu conv;
  Tensor<4> dy;     // (B, D, H, W) in the dtype of x
  Tensor<4> dx;     // (B, D, H, W) in the dtype of x
  float* partials;  // (parts, D, 10): the sums of each part of the columns for the gradients of weight and bias
  int64_t parts;    // from dwconv_silu_parts
};

struct ConvStrips {
  int64_t rows, strips;  // rows per strip, strips per image

  // Strips of at most `rows` rows; all but the last have equal height.
  static ConvStrips of(int64_t height, int64_t rows) {
    const int64_t strips = (height + rows - 1) / rows;
    return {(height + strips - 1) / strips, strips};
  }
};

// Forward, `count` channels per thread. A strip reads two rows beyond its own, so strips are as high as 2^18 threads
// allow, about the most that a current GPU can hold; between 2 and 16 rows.
inline ConvStrips forward_strips(const DwconvSilu& p, int count) {
  const int64_t one_row = p.shape.batch * p.shape.height * p.shape.width * ((p.shape.channels + count - 1) / count);
  return ConvStrips::of(p.shape.height, std::clamp<int64_t>(one_row >> 18, 2, 16));
}

// Backward, the first and the last column of a block only compute values for their neighbours.
inline constexpr int kConvInner = kConvColumns - 2;
inline constexpr int64_t kConvLeastRows = 4, kConvMostRows = 32;

// The number of parts of the columns, one per block: two blocks per multiprocessor, but no block without work at the
// smallest strip height.
inline int64_t dwconv_silu_parts(int64_t batch, int64_t channels, int64_t height, int64_t width, int multiprocessors) {
  constexpr int64_t kChannels = 2 * kConvPacks;
  const int64_t columns = batch * width * ConvStrips::of(height, kConvLeastRows).strips;
  const int64_t wanted = 2 * int64_t{multiprocessors} / ((channels + kChannels - 1) / kChannels);
  return std::max<int64_t>(1, std::min(wanted, (columns + kConvInner - 1) / kConvInner));
}

// A strip computes two rows beyond its own, so strips are as high as eight turns per part allow.
inline ConvStrips backward_strips(const DwconvSilu& p, int64_t parts) {
  const int64_t rows = p.shape.batch * p.shape.height * p.shape.width / (parts * kConvInner * 8);
  return ConvStrips::of(p.shape.height, std::clamp(rows, kConvLeastRows, kConvMostRows));
}

}  // namespace mtlkit::cuda
