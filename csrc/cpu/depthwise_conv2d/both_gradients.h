// The gradients of input and filter in one pass over the rows of the input, of maps that are read and written in place
// and filters of 3 x 3 without dilation.
//
// Pixel p of the input meets the same pixels of the output's gradient in both: dx[p] sums dy times the taps, and the
// taps' gradients sum dy times x[p]. So each vector of dy is loaded once for both; the taps, their gradients and the
// sums of a tile are in registers. A run of tiles in one vector of channels follows one another, then the next vector.
//
// If the maps exceed the caches, dx is written past them, because they would read its lines first.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/depthwise_conv2d/in_place.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Whether this is faster than one pass for each gradient: with fewer registers, taps and sums would not fit.
template <int kKernel, bool kDilated>
inline constexpr bool kBothAtOnce = kKernel == 3 && !kDilated && kVectorBytes == 64;

constexpr int kBothTile = 4;                 // pixels of a tile; for stride 2, pairs of pixels
constexpr int64_t kRun = 8, kFarRun = 2;     // most tiles of a run, and if the maps exceed the caches
constexpr int64_t kBothFarBytes = 12 << 20;  // of such maps
constexpr int64_t kBothSums = 10;            // of a filter and a bias

// Writes a vector, at an address that is a multiple of its size, past the caches.
template <typename T>
MTLKIT_INLINE void store_past(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#else
  store(p, v);
#endif
}

// Makes what was written past the caches visible to other threads.
inline void finish_stores_past() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Whether all vectors of an image start at multiples of their size.
template <typename T>
bool has_aligned_vectors(const Tensor<4>& image) {
  const auto bytes = reinterpret_cast<uintptr_t>(image.data);
  const int64_t steps = image.stride[0] | image.stride[2] | image.stride[3];
  return bytes % sizeof(Vec<T>) == 0 && steps % kLanes<T> == 0;
}

// The taps that meet a tile. The window has rows i and columns m of dy, the tile has pixels k of x and dx.
//
// Stride 1: the filter is rotated by 180 degrees. Stride 2: row i of the window meets tap row 2 i + kOdd, where kOdd is
// the parity of the tile's row.
template <int kStride, int kOdd>
struct Meeting {
  static constexpr int kRows = kStride == 1 ? 3 : 2 - kOdd;
  static constexpr int kColumns = kBothTile + (kStride == 1 ? 2 : 1);
  static constexpr int kPixels = kStride * kBothTile;

  static constexpr int tap_row(int i) { return kStride == 1 ? i : 2 * i + kOdd; }
  static constexpr int tap_column(int m, int k) { return kStride == 1 ? m - k : 2 * (k / 2 - m + 1) + k % 2; }
  static constexpr bool meets(int m, int k) { return tap_column(m, k) >= 0 && tap_column(m, k) < 3; }
};

// A tile: adds to `sums` and writes the pixels k of dx with first <= k < last, whose x are read.
template <typename T, typename M, bool kEdge, bool kPast, typename C>
MTLKIT_INLINE void pull_tile(const Window<T>& window, const C& columns, const T* x, int64_t x_step, T* dx,
                             int64_t dx_step, int64_t first, int64_t last, const Vec<T>* taps, Vec<T> start,
                             Vec<T>* sums) {
  Vec<T> v[M::kPixels], dv[M::kPixels];
#pragma GCC unroll 8
  for (int k = 0; k < M::kPixels; ++k) {
    v[k] = !kEdge || (k >= first && k < last) ? load(x + k * x_step) : Vec<T>{};
    dv[k] = start;
  }
#pragma GCC unroll 3
  for (int i = 0; i < M::kRows; ++i) {
    if (i < window.first || i >= window.last) continue;
    const T* row = window.row + (i - window.first) * window.step;
#pragma GCC unroll 8
    for (int m = 0; m < M::kColumns; ++m) {
      const Vec<T> g = columns.template read<kEdge>(row, m);
#pragma GCC unroll 8
      for (int k = 0; k < M::kPixels; ++k) {
        if (!M::meets(m, k)) continue;
        const int tap = 3 * i + M::tap_column(m, k);
        dv[k] += g * taps[tap];
        sums[tap] += g * (kEdge ? columns.where_exists(v[k], m) : v[k]);
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < M::kPixels; ++k) {
    if (kEdge && (k < first || k >= last)) continue;
    kPast ? store_past(dx + k * dx_step, dv[k]) : store(dx + k * dx_step, dv[k]);
  }
}

// Prefetches the pixels of a later row in the order of their addresses, some lines at each tile.
template <typename T>
class InOrder {
 public:
  InOrder(const T* first, int64_t step, int64_t blocks)
      : line_(first), blocks_(blocks), gap_(step - blocks * kLanes<T>) {}

  template <int kCount>
  MTLKIT_INLINE void prefetch() {
    if (!line_) return;
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) {
      __builtin_prefetch(line_, 0);
      line_ += kLanes<T>;
      if (++block_ == blocks_) block_ = 0, line_ += gap_;
    }
  }

 private:
  const T* line_;
  int64_t blocks_, gap_, block_ = 0;
};

// A row of x and dx, and the rows of dy that it meets.
template <typename T>
struct PulledRow {
  Window<T> window;
  const T* x;
  T* dx;
  int64_t x_step, dx_step, dy_step;  // between neighbouring pixels
  int64_t width, dy_width;
  int64_t first, first_column;  // the first tile's first pixel, which may not exist, and first column of the window
  const T *next_x, *next_dy;    // the rows to prefetch, null for none
  int64_t most_tiles;           // of a run
};

template <typename T, typename M, bool kPast>
void pull_tiles(const PulledRow<T>& r, const Item& item, const Filter<T, 3>* filters, Vec<T>* sums) {
  using C = Columns<T, M::kColumns>;
  const auto columns_of = [&](int64_t tile) { return C(r.first_column + tile * kBothTile, 1, r.dy_width, r.dy_step); };
  const auto is_whole = [&](int64_t tile) {
    const int64_t w = r.first + tile * M::kPixels;
    return w >= 0 && w + M::kPixels <= r.width && columns_of(tile).all_exist();
  };
  const int64_t tiles = ceil_div(r.width - r.first, M::kPixels);
  for (int64_t tile = 0, run; tile < tiles; tile += run) {
    run = 0;
    while (run < r.most_tiles && tile + run < tiles && is_whole(tile + run)) ++run;
    const bool edge = run == 0;
    run = max(run, 1);
    C columns = columns_of(tile);
    if (edge) columns.find_existing();
    const int64_t w = r.first + tile * M::kPixels, column = r.first_column + tile * kBothTile;
    InOrder<T> next_x(r.next_x && !edge ? r.next_x + w * r.x_step : nullptr, r.x_step, item.last - item.first);
    InOrder<T> next_dy(r.next_dy && !edge ? r.next_dy + column * r.dy_step : nullptr, r.dy_step,
                       item.last - item.first);
    for (int64_t block = 0; block < item.last - item.first; ++block) {
      const int64_t lane = block * kLanes<T>;
      Vec<T>* const all = sums + block * kBothSums;
      Vec<T> taps[3 * M::kRows], sum[3 * M::kRows], start{};
      const auto each_tap = [&](auto f) {
#pragma GCC unroll 3
        for (int i = 0; i < M::kRows; ++i) {
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) f(3 * i + j, 3 * M::tap_row(i) + j, i >= r.window.first && i < r.window.last);
        }
      };
      each_tap([&](int k, int tap, bool exists) {
        taps[k] = filters[block].taps[tap];
        sum[k] = all[tap];
        if (!exists) start += Vec<T>{} * taps[k];  // taps that are not finite spread from the zeros beyond the border
      });
      Window<T> window = r.window.at(block);
      const T* x = r.x + w * r.x_step + lane;
      T* dx = r.dx + w * r.dx_step + lane;
      if (edge) {
        pull_tile<T, M, true, kPast>(window, columns, x, r.x_step, dx, r.dx_step, -w, r.width - w, taps, start, sum);
      } else {
        for (int64_t n = 0; n < run; ++n) {
          next_x.template prefetch<M::kPixels>();
          next_dy.template prefetch<kBothTile>();
          pull_tile<T, M, false, kPast>(window, columns, x, r.x_step, dx, r.dx_step, 0, M::kPixels, taps, start, sum);
          window.row += kBothTile * r.dy_step;
          x += M::kPixels * r.x_step;
          dx += M::kPixels * r.dx_step;
        }
      }
      each_tap([&](int k, int tap, bool) { all[tap] = sum[k]; });
    }
  }
}

template <typename M, typename T>
void pull_row(const PulledRow<T>& row, const Item& item, const Filter<T, 3>* filters, bool past, Vec<T>* sums) {
  past ? pull_tiles<T, M, true>(row, item, filters, sums) : pull_tiles<T, M, false>(row, item, filters, sums);
}

// Adds the products of row h of x to the gradients of the taps, and writes the row of dx; `past` means past the caches.
// With stride 1, `s` is the convolution that computes dx, whose output is x; filters are rotated, and so are `sums`.
template <int kStride, typename T>
void pull_both(const DepthwiseConv2dShape& s, const Tensor<4>& x, const Tensor<4>& dy, const Tensor<4>& dx,
               const Item& item, const Lattice& l, int64_t h, const Filter<T, 3>* filters, bool far, bool past,
               Vec<T>* sums) {
  const int64_t height = kStride == 1 ? s.out_height : s.height, dy_height = kStride == 1 ? s.height : s.out_height;
  const auto ahead = [&](const Tensor<4>& image, int64_t row, int64_t rows) {
    return far && row >= 0 && row < rows ? row_of<T>(image, item, row) : nullptr;
  };
  PulledRow<T> r{};
  r.x = row_of<T>(x, item, h), r.dx = row_of<T>(dx, item, h);
  r.x_step = x.stride[3], r.dx_step = dx.stride[3], r.dy_step = dy.stride[3];
  r.next_x = ahead(x, h + 1, height), r.most_tiles = far ? kFarRun : kRun;
  if constexpr (kStride == 1) {
    r.window = window_of<T, 3>(dy, item, l, h);
    r.width = s.out_width, r.dy_width = s.width;
    r.first = 0, r.first_column = -s.left;
    r.next_dy = ahead(dy, h + 3 - s.top, dy_height);
    pull_row<Meeting<1, 0>>(r, item, filters, past, sums);
  } else {
    const int64_t row = (h + s.top) / 2, odd = (h + s.top) % 2;
    r.window = window_of_pairs<T, 3>(dy, item, s, h);
    r.width = s.width, r.dy_width = s.out_width;
    r.first = s.left / 2 * 2 - s.left, r.first_column = s.left / 2 - 1;
    if (odd) r.next_dy = ahead(dy, row + 1, dy_height);
    odd ? pull_row<Meeting<2, 1>>(r, item, filters, past, sums) : pull_row<Meeting<2, 0>>(r, item, filters, past, sums);
  }
}

// Adds row t of the output to the gradients of the biases.
template <typename T>
void add_to_biases(const DepthwiseConv2dShape& s, const Tensor<4>& dy, const Item& item, int64_t t, Vec<T>* sums) {
  const T* const row = row_of<T>(dy, item, t);
  for (int64_t block = 0; block < item.last - item.first; ++block) {
    Vec<T> total{};
    for (int64_t w = 0; w < s.out_width; ++w) total += load(row + w * dy.stride[3] + block * kLanes<T>);
    sums[block * kBothSums + 9] += total;
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
