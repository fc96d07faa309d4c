// Linear layers over the channels of every pixel: y (+)= x W^T + bias, all three in the type of computation.
//
// A panel is a few vectors of output channels. A thread packs a panel's weights just before it uses them: they are
// still in the cache then, and no stale copy of a weight can remain. Each element is summed in the order of the input
// channels, independent of the division among threads.
#pragma once

#include "cpu/interaction/dense.h"
#include "cpu/interaction/packed_matrix.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Pixels and vectors of a block, which is summed in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kPixels = 8;
inline constexpr int kPanelVectors = 3;
#else
inline constexpr int kPixels = 6;
inline constexpr int kPanelVectors = 2;
#endif

template <typename T>
struct PixelLinear {
  int64_t pixels, inputs, outputs;
  const T* x;        // (pixels, inputs), contiguous
  T* y;              // (pixels, outputs), contiguous
  Tensor<2> weight;  // (outputs, inputs)
  Tensor<1> bias;    // (outputs), may be absent
  bool add;          // whether to add to y instead of setting it
};

// y (+)= x panel + bias for `pixels` rows of x and `vectors` vectors of the panel; bias is padded to whole vectors.
template <typename T, int pixels, int vectors>
void pixel_block(const PixelLinear<T>& p, int64_t pixel, int64_t column, const T* panel, const T* bias) {
  constexpr int lanes = kLanes<T>;
  const T* row[pixels];
  for (int i = 0; i < pixels; ++i) row[i] = p.x + (pixel + i) * p.inputs;
  Vec<T> sum[pixels][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = load(bias + j * lanes);
  }
  for (int64_t k = 0; k < p.inputs; ++k) {
    Vec<T> v[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) v[j] = load(panel + (k * vectors + j) * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < pixels; ++i) {
      const Vec<T> factor = splat(row[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += factor * v[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i) {
    T* const to = p.y + (pixel + i) * p.outputs + column;
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      const int64_t left = p.outputs - column - j * lanes;
      store_left<T>(to + j * lanes, p.add ? load_left<T>(to + j * lanes, left) + sum[i][j] : sum[i][j], left);
    }
  }
}

// Calls f(std::integral_constant<int, count>{}) for a count from 1 to `most`.
template <int most, typename F>
MTLKIT_INLINE void with_count(int64_t count, F f) {
  if constexpr (most > 1) {
    if (count < most) return with_count<most - 1>(count, f);
  }
  f(std::integral_constant<int, most>{});
}

// Processes blocks of at most kPixels pixels, whose sizes differ by at most one.
template <typename T, int vectors>
void pixel_blocks(const PixelLinear<T>& p, Share pixels, int64_t column, const T* panel, const T* bias) {
  const int64_t count = pixels.last - pixels.first, blocks = ceil_div(count, kPixels);
  for (int64_t b = 0; b < blocks; ++b) {
    const Share some = share(count, blocks, b);
    with_count<kPixels>(some.last - some.first, [&](auto size) {
      pixel_block<T, decltype(size)::value, vectors>(p, pixels.first + some.first, column, panel, bias);
    });
  }
}

// Elements of a thread's panel.
template <typename T>
int64_t panel_size(int64_t inputs) {
  return (inputs + 1) * kPanelVectors * kLanes<T>;
}

// The number of threads that divide the panels among them; groups of so many threads divide the pixels. Packing a panel
// takes as long as half a block.
inline int64_t panel_shares(int64_t pixels, int64_t panels, int64_t team) {
  int64_t best = 1;
  double least = 0;
  for (int64_t shares = 1; shares <= team; ++shares) {
    if (team % shares) continue;
    const double blocks = ceil_div(ceil_div(pixels, team / shares), kPixels);
    const double time = ceil_div(panels, shares) * (blocks + 0.5);
    if (shares == 1 || time < least) best = shares, least = time;
  }
  return best;
}

// Computes a thread's part of the layer; `panel` is its scratch memory.
template <typename T>
void pixel_linear(const PixelLinear<T>& p, int thread, int team, T* panel) {
  constexpr int lanes = kLanes<T>, wide = kPanelVectors * lanes;
  const int64_t panels = ceil_div(p.outputs, wide), shares = panel_shares(p.pixels, panels, team);
  const Share pixels = share(p.pixels, team / shares, thread / shares), mine = share(panels, shares, thread % shares);
  T* const bias = panel + p.inputs * wide;
  for (int64_t i = mine.first; i < mine.last; ++i) {
    const int64_t column = i * wide, columns = min(wide, p.outputs - column), vectors = ceil_div(columns, lanes);
    const int64_t* s = p.weight.stride;
    pack<T>(at(p.weight, column * s[0]), p.weight.dtype, s[1], s[0], p.inputs, columns, panel, vectors * lanes);
    if (p.bias) {
      pack<T>(at(p.bias, column * p.bias.stride[0]), p.bias.dtype, 0, p.bias.stride[0], 1, columns, bias, wide);
    } else {
      std::memset(bias, 0, wide * sizeof(T));
    }
    with_count<kPanelVectors>(
        vectors, [&](auto count) { pixel_blocks<T, decltype(count)::value>(p, pixels, column, panel, bias); });
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
