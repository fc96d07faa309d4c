// The depthwise convolution of maps that are read and written in place: those whose memory already holds vectors of
// channels in the type of computation.
//
// A tile is a run of neighbouring output pixels (with a dilation, of every dilation-th pixel) and one vector of
// channels: its sums are in registers, and its pixels share their loads. Tiles of the same pixels and neighbouring
// vectors follow one another, so that memory is read and written in long runs. Rows beyond the border are left out;
// only the tiles at the left and right border test whether a column exists.
#pragma once

#include <type_traits>

#include "cpu/depthwise_conv2d/items.h"
#include "cpu/silu.h"

namespace mtlkit {
namespace MTLKIT_ISA {

constexpr int kTile = 8;                  // most pixels of a tile
constexpr int kPairs = 4;                 // pairs of pixels in a tile of the input's gradient for stride 2
constexpr int64_t kMaxBlocks = 16;        // per item
constexpr int64_t kTileBytes = 32 << 10;  // of the tiles of the same pixels, about the size of the nearest caches
constexpr int64_t kFarBytes = 24 << 20;   // of the maps of a call that do not stay in the caches

// Whether a map's memory holds the vectors; an absent one counts.
template <typename T>
bool has_vectors(const Tensor<4>& image) {
  return !image || (image.stride[1] == 1 && image.dtype == dtype_of<T>);
}

// The most blocks of an item.
template <typename T>
int64_t blocks_at_once(const DepthwiseConv2dShape& s) {
  const int64_t vectors = s.kernel * ((kTile - 1) * s.stride + 2 * s.kernel);  // of the map, and of the filter
  return clamp(kTileBytes / (vectors * static_cast<int64_t>(sizeof(Vec<T>))), 1, kMaxBlocks);
}

// Whether `maps` of the input's size and `out_maps` of the output's exceed the caches, or `bytes`.
template <typename T>
bool is_far(const DepthwiseConv2dShape& s, int64_t maps, int64_t out_maps, int64_t bytes = kFarBytes) {
  const int64_t pixels = maps * s.height * s.width + out_maps * s.out_height * s.out_width;
  return s.batch * s.channels * pixels * static_cast<int64_t>(sizeof(T)) > bytes;
}

// The existing rows of a window, `step` elements apart: rows [first, last) of the window, of which `row` is the first.
template <typename T>
struct Window {
  const T* row;
  int64_t step;
  int first, last;

  Window at(int64_t block) const { return {row + block * kLanes<T>, step, first, last}; }
};

// The first pixel of a row, in the first channel of an item.
template <typename T>
T* row_of(const Tensor<4>& image, const Item& item, int64_t h) {
  return static_cast<T*>(row_of(image, {item.b, item.first * kLanes<T>, kLanes<T>}, h));
}

template <typename T, int kKernel>
Window<T> window_of(const Tensor<4>& image, const Item& item, const Lattice& l, int64_t row) {
  const int64_t first = clamp(l.in_first - row, 0, kKernel), last = clamp(l.in_last - row, first, kKernel);
  const int64_t h = first < last ? l.base + l.step * (row + first) : 0;
  return {row_of<T>(image, item, h), l.step * image.stride[2], static_cast<int>(first), static_cast<int>(last)};
}

// The columns of a map that a tile reads.
template <typename T, int kCount>
class Columns {
 public:
  // Columns first + m * dilation, m < kCount, of a map with `width` pixels that are `stride` elements apart.
  Columns(int64_t first, int64_t dilation, int64_t width, int64_t stride)
      : first_(first), dilation_(dilation), width_(width), stride_(stride) {}

  bool all_exist() const { return first_ >= 0 && first_ + (kCount - 1) * dilation_ < width_; }

  // Prepares for reads with kEdge.
  void find_existing() {
    for (int m = 0; m < kCount; ++m) {
      const int64_t column = first_ + m * dilation_;
      const bool exists = column >= 0 && column < width_;
      offset_[m] = exists ? column * stride_ : 0;
      exists_[m] = Mask<T>{} - (exists ? 1 : 0);
    }
  }

  // The vector if column m exists, else zeros.
  MTLKIT_INLINE Vec<T> where_exists(Vec<T> v, int m) const { return keep<T>(v, exists_[m]); }

  // Column m of a row; with kEdge it may not exist, and reads as 0.
  template <bool kEdge>
  MTLKIT_INLINE Vec<T> read(const T* row, int m) const {
    if constexpr (kEdge) return keep<T>(load(row + offset_[m]), exists_[m]);
    return load(row + first_ * stride_ + m * (dilation_ * stride_));
  }

 private:
  int64_t first_, dilation_, width_, stride_;
  int64_t offset_[kCount];
  Mask<T> exists_[kCount];
};

// Calls f(size, w, count) for every tile of a row of `width` pixels: pixels w + k * dilation, k < count. `size` is a
// constant, and `count` is the same except in narrow rows.
template <typename F>
MTLKIT_INLINE void for_tiles(int64_t width, int64_t dilation, F f) {
  for (int64_t c = 0; c < min(dilation, width); ++c) {
    const int64_t pixels = ceil_div(width - c, dilation), tiles = ceil_div(pixels, kTile);
    for (int64_t i = 0; i < tiles; ++i) {
      const Share of = share(pixels, tiles, i);
      const int64_t count = of.last - of.first;
      if (count == kTile) {
        f(std::integral_constant<int, kTile>{}, c + of.first * dilation, count);
      } else {
        f(std::integral_constant<int, kTile - 1>{}, c + of.first * dilation, count);
      }
    }
  }
}

// The pixels of a later row that are prefetched while a tile is processed, for maps that exceed the caches: the
// hardware follows too few of the streams that a row of many windows is.
template <typename T>
class Ahead {
 public:
  Ahead() = default;
  Ahead(const T* row, int64_t step) : row_(row), step_(step) {}

  template <int kCount, int kWrite>
  MTLKIT_INLINE void prefetch(int64_t offset) const {
    if (!row_) return;
#pragma GCC unroll 16
    for (int k = 0; k < kCount; ++k) __builtin_prefetch(row_ + offset + k * step_, kWrite);
  }

 private:
  const T* row_ = nullptr;
  int64_t step_ = 0;
};

// Row `row` of a class of the input, or of the output; nothing if it does not exist or the maps fit in the caches.
template <typename T>
Ahead<T> ahead_in(const Tensor<4>& image, const Item& item, const Lattice& l, int64_t row, bool far) {
  if (!far || row < l.in_first || row >= l.in_last) return {};
  return {row_of<T>(image, item, l.base + l.step * row), l.step * image.stride[3]};
}

template <typename T>
Ahead<T> ahead_out(const Tensor<4>& image, const Item& item, const Lattice& l, int64_t row, bool far) {
  if (!far || row >= l.out_rows) return {};
  return {row_of<T>(image, item, l.first + l.step * row), l.step * image.stride[3]};
}

// What happens to a sum before it is written.
struct Plain {
  template <typename V>
  MTLKIT_INLINE V operator()(V sum) const {
    return sum;
  }
};
struct WithSilu {
  template <typename V>
  MTLKIT_INLINE V operator()(V sum) const {
    return silu(sum);
  }
};

// Calls f(k, sum) for the pixels of a tile.
template <typename T, int kKernel, int kStride, int kPixels, bool kEdge, typename C, typename F>
MTLKIT_INLINE void convolve_tile(const Window<T>& window, const C& columns, const Filter<T, kKernel>& filter, F f) {
  Vec<T> start = filter.bias;
  for (int i = 0; i < kKernel; ++i) {  // taps that are not finite spread from the zeros beyond the border, too
    if (i >= window.first && i < window.last) continue;
    for (int j = 0; j < kKernel; ++j) start += Vec<T>{} * filter.taps[i * kKernel + j];
  }
  Vec<T> sum[kPixels];
  for (int k = 0; k < kPixels; ++k) sum[k] = start;
  const T* row = window.row;
#pragma GCC unroll 1
  for (int i = window.first; i < window.last; ++i, row += window.step) {
    Vec<T> taps[kKernel];
    for (int j = 0; j < kKernel; ++j) taps[j] = filter.taps[i * kKernel + j];
#pragma GCC unroll 32
    for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
      const Vec<T> x = columns.template read<kEdge>(row, m);
#pragma GCC unroll 8
      for (int k = 0; k < kPixels; ++k) {
        const int j = m - k * kStride;
        if (j >= 0 && j < kKernel) sum[k] += x * taps[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kPixels; ++k) f(k, sum[k]);
}

// Row t of a class of the output: `filters` are those of the item's blocks, and `finish` is applied to every sum.
template <typename T, int kKernel, int kStride, typename F>
void convolve_row(const DepthwiseConv2dShape& s, const Tensor<4>& x, const Tensor<4>& y, const Item& item,
                  const Lattice& l, int64_t t, const Filter<T, kKernel>* filters, bool far, F finish) {
  const Window<T> window = window_of<T, kKernel>(x, item, l, t * kStride);
  T* const out = row_of<T>(y, item, l.first + l.step * t);
  const int64_t step = s.dilation * y.stride[3];
  Ahead<T> next[kStride];
  for (int i = 0; i < kStride; ++i) next[i] = ahead_in<T>(x, item, l, t * kStride + kKernel + i, far);
  const Ahead<T> next_out = ahead_out<T>(y, item, l, t + 1, far);
  for_tiles(s.out_width, s.dilation, [&](auto size, int64_t w, int64_t count) {
    constexpr int kPixels = decltype(size)::value;
    Columns<T, (kPixels - 1) * kStride + kKernel> columns(w * kStride - s.left, s.dilation, s.width, x.stride[3]);
    const bool whole = columns.all_exist() && count == kPixels;
    if (!whole) columns.find_existing();
    for (int64_t block = 0; block < item.last - item.first; ++block) {
      T* const pixels = out + w * y.stride[3] + block * kLanes<T>;
      for (const Ahead<T>& a : next) {
        a.template prefetch<kPixels * kStride, 0>(w * kStride * x.stride[3] + block * kLanes<T>);
      }
      next_out.template prefetch<kPixels, 1>(w * y.stride[3] + block * kLanes<T>);
      if (whole) {
        convolve_tile<T, kKernel, kStride, kPixels, false>(
            window.at(block), columns, filters[block],
            [=](int k, Vec<T> sum) { store(pixels + k * step, finish(sum)); });
      } else {
        convolve_tile<T, kKernel, kStride, kPixels, true>(window.at(block), columns, filters[block],
                                                          [=](int k, Vec<T> sum) {
                                                            if (k < count) store(pixels + k * step, finish(sum));
                                                          });
      }
    }
  });
}

// The tile of the input's gradient for stride 2 (see `spread`): calls f(k, sum) for its 2 * kPairs pixels.
template <typename T, int kKernel, bool kEdge, typename C, typename F>
MTLKIT_INLINE void spread_tile(const Window<T>& window, const C& columns, int odd, const Filter<T, kKernel>& filter,
                               F f) {
  constexpr int kHalf = (kKernel - 1) / 2;
  Vec<T> sum[2 * kPairs] = {};
  const T* row = window.row;
#pragma GCC unroll 1
  for (int r = window.first; r < window.last; ++r, row += window.step) {
    const Vec<T>* taps = filter.taps + (2 * r + odd) * kKernel;
#pragma GCC unroll 8
    for (int n = 0; n < kPairs + kHalf; ++n) {
      const Vec<T> g = columns.template read<kEdge>(row, n);
#pragma GCC unroll 8
      for (int k = 0; k < kPairs; ++k) {
        const int j = 2 * (k - n + kHalf);
        if (j >= 0 && j < kKernel) sum[2 * k] += g * taps[j];
        if (j >= 0 && j + 1 < kKernel) sum[2 * k + 1] += g * taps[j + 1];
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < 2 * kPairs; ++k) f(k, sum[k]);
}

// The rows of dy that meet row h of the input for stride 2. With u = h + top, tap row 2 r + u % 2 meets row u / 2 - r.
template <typename T, int kKernel>
Window<T> window_of_pairs(const Tensor<4>& dy, const Item& item, const DepthwiseConv2dShape& s, int64_t h) {
  const int64_t u = h + s.top, row = u / 2, tap_rows = (kKernel + 1 - u % 2) / 2;
  const int64_t first = clamp(row - s.out_height + 1, 0, tap_rows), last = clamp(row + 1, first, tap_rows);
  return {row_of<T>(dy, item, first < last ? row - first : 0), -dy.stride[2], static_cast<int>(first),
          static_cast<int>(last)};
}

// Row h of the input's gradient for stride 2.
template <typename T, int kKernel>
void spread_row(const DepthwiseConv2dShape& s, const Tensor<4>& dy, const Tensor<4>& dx, const Item& item, int64_t h,
                const Filter<T, kKernel>* filters, bool far) {
  const Window<T> window = window_of_pairs<T, kKernel>(dy, item, s, h);
  const int odd = static_cast<int>((h + s.top) % 2);
  T* const out = row_of<T>(dx, item, h);
  const bool more = far && h + 1 < s.height;
  const Ahead<T> next = more ? Ahead<T>(row_of<T>(dx, item, h + 1), dx.stride[3]) : Ahead<T>();
  for (int64_t pair = s.left / 2; 2 * pair < s.left + s.width; pair += kPairs) {
    const int64_t w = 2 * pair - s.left;  // the tile's first pixel
    Columns<T, kPairs + (kKernel - 1) / 2> columns(pair - (kKernel - 1) / 2, 1, s.out_width, dy.stride[3]);
    const bool whole = columns.all_exist() && w >= 0 && w + 2 * kPairs <= s.width;
    if (!whole) columns.find_existing();
    for (int64_t block = 0; block < item.last - item.first; ++block) {
      T* const pixels = out + w * dx.stride[3] + block * kLanes<T>;
      next.template prefetch<2 * kPairs, 1>(w * dx.stride[3] + block * kLanes<T>);
      if (whole) {
        spread_tile<T, kKernel, false>(window.at(block), columns, odd, filters[block],
                                       [=](int k, Vec<T> sum) { store(pixels + k * dx.stride[3], sum); });
      } else {
        spread_tile<T, kKernel, true>(window.at(block), columns, odd, filters[block], [=](int k, Vec<T> sum) {
          if (w + k >= 0 && w + k < s.width) store(pixels + k * dx.stride[3], sum);
        });
      }
    }
  }
}

// Adds the part of a tile to the gradients of the filter, and then of the bias; `dy` is the tile's gradient, of pixels
// that are `step` elements apart.
template <typename T, int kKernel, int kStride, int kPixels, bool kEdge, typename C>
MTLKIT_INLINE void add_tile(const Window<T>& window, const C& columns, const T* dy, int64_t step, Vec<T>* sums) {
  Vec<T> g[kPixels], total{};
  for (int k = 0; k < kPixels; ++k) {
    g[k] = load(dy + k * step);
    total += g[k];
  }
  sums[kKernel * kKernel] += total;
  const T* row = window.row;
#pragma GCC unroll 1
  for (int i = window.first; i < window.last; ++i, row += window.step) {
    Vec<T> sum[kKernel] = {};
#pragma GCC unroll 32
    for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
      const Vec<T> x = columns.template read<kEdge>(row, m);
#pragma GCC unroll 8
      for (int k = 0; k < kPixels; ++k) {
        const int j = m - k * kStride;
        if (j >= 0 && j < kKernel) sum[j] += g[k] * x;
      }
    }
    for (int j = 0; j < kKernel; ++j) sums[i * kKernel + j] += sum[j];
  }
}

// Adds the part of row t of a class of the output to the gradients of the filters and biases of an item's blocks.
template <typename T, int kKernel, int kStride>
void add_row(const DepthwiseConv2dShape& s, const Tensor<4>& x, const Tensor<4>& dy, const Item& item, const Lattice& l,
             int64_t t, bool far, Vec<T>* sums) {
  const Window<T> window = window_of<T, kKernel>(x, item, l, t * kStride);
  const T* const gradient = row_of<T>(dy, item, l.first + l.step * t);
  const int64_t step = s.dilation * dy.stride[3];
  Ahead<T> next[kStride];
  for (int i = 0; i < kStride; ++i) next[i] = ahead_in<T>(x, item, l, t * kStride + kKernel + i, far);
  const Ahead<T> next_dy = ahead_out<T>(dy, item, l, t + 1, far);
  const auto add = [&](auto size, int64_t w) {
    constexpr int kPixels = decltype(size)::value;
    Columns<T, (kPixels - 1) * kStride + kKernel> columns(w * kStride - s.left, s.dilation, s.width, x.stride[3]);
    const bool whole = kPixels >= kTile - 1 && columns.all_exist();  // smaller tiles are rare
    if (!whole) columns.find_existing();
    for (int64_t block = 0; block < item.last - item.first; ++block) {
      const T* const pixels = gradient + w * dy.stride[3] + block * kLanes<T>;
      for (const Ahead<T>& a : next) {
        a.template prefetch<kPixels * kStride, 0>(w * kStride * x.stride[3] + block * kLanes<T>);
      }
      next_dy.template prefetch<kPixels, 0>(w * dy.stride[3] + block * kLanes<T>);
      Vec<T>* const sum = sums + block * (kKernel * kKernel + 1);
      if (whole) {
        add_tile<T, kKernel, kStride, kPixels, false>(window.at(block), columns, pixels, step, sum);
      } else {
        add_tile<T, kKernel, kStride, kPixels, true>(window.at(block), columns, pixels, step, sum);
      }
    }
  };
  for_tiles(s.out_width, s.dilation, [&](auto size, int64_t w, int64_t count) {
    if (count == decltype(size)::value) return add(size, w);
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) add(std::integral_constant<int, 4>{}, w + k * s.dilation);
    for (; k < count; ++k) add(std::integral_constant<int, 1>{}, w + k * s.dilation);
  });
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
