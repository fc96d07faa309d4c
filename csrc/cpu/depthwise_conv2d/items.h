// Shared by both passes of the depthwise convolution: work items, access to the rows of a lane, the ring buffer of
// rows, the filter, and the choice of template arguments for a shape.
//
// A work item is a band of rows of one image in a few neighbouring vectors of channels, its lanes. A lane's rows are
// packed into a ring buffer of k rows, as contiguous vectors with zeros at each end: packing handles layout, dtype,
// sizes that do not divide evenly and the border, and every element is read from memory once. The lanes alternate at
// every row, so that memory is read in runs of several lines, and a row is prefetched while the previous one is used.
//
// With dilation d, the rows h, h + d, h + 2 d, ... form a class: an independent problem without vertical dilation.
// There are d classes. Row t of a class's output reads the rows stride * t .. stride * t + k - 1 of its input.
#pragma once

#include "cpu/depthwise_conv2d/depthwise_conv2d.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {

constexpr int64_t kAbreast = 4;           // neighbouring pixels that share their loads
constexpr int64_t kBandPixels = 1024;     // least pixels of a backward band: each has its own sums and extra rows
constexpr int64_t kMaxLanes = 8;          // per item
constexpr int64_t kLaneBytes = 32 << 10;  // for the rings of an item, about the size of the nearest caches

inline int64_t whole(int64_t width) { return ceil_div(width, kAbreast) * kAbreast; }

inline int64_t clamp(int64_t value, int64_t least, int64_t most) { return min(max(value, least), most); }

// Like `ceil_div`, for dividends of any sign.
inline int64_t ceil_of(int64_t a, int64_t b) { return a > 0 ? ceil_div(a, b) : -(-a / b); }

// The rows of one class: row r of the class is row first + dilation * r of the output, or base + dilation * r of the
// input.
struct Lattice {
  int64_t step, first, base;
  int64_t out_rows;           // rows of the output
  int64_t in_first, in_last;  // existing rows of the input

  Lattice(const DepthwiseConv2dShape& s, int64_t index)
      : step(s.dilation),
        first(index),
        base(index * s.stride - s.top),
        out_rows(max(ceil_of(s.out_height - index, step), 0)),
        in_first(max(ceil_of(-base, step), 0)),
        in_last(max(ceil_of(s.height - base, step), in_first)) {}
};

// The position of an item: blocks [first, last), each one vector of channels.
struct Item {
  int64_t b, group, first, last, index, band;
};

// A lane of an item.
struct Place {
  int64_t b, d, channels;
};

template <typename T>
struct Plan {
  int64_t channels, blocks, groups, lanes, classes, bands, items;
  bool group_inside;  // else neighbouring items share filters, whose loading takes long compared with a small map
  int threads;

  // Items have at most `most` lanes.
  Plan(const DepthwiseConv2dForward& p, int64_t most, bool backward)
      : channels(p.shape.channels),
        blocks(ceil_div(channels, kLanes<T>)),
        groups(ceil_div(blocks, most)),
        lanes(ceil_div(blocks, groups)),
        classes(p.shape.dilation),
        group_inside(p.shape.out_height * p.shape.out_width >= kBandPixels) {
    const int64_t rows = ceil_div(p.shape.out_height, classes), pixels = rows * p.shape.out_width;
    // The backward pass sums per band, so bands must not depend on the number of threads.
    bands = min(rows, backward ? max(pixels / kBandPixels, 1) : split(p.shape.batch * classes * groups, 64, p.threads));
    items = p.shape.batch * classes * bands * groups;
    threads = static_cast<int>(min(p.threads, items));
  }

  // The number of items with the same channels.
  int64_t parts() const { return items / groups; }

  Item item(int64_t i) const {
    const int64_t group = group_inside ? i % groups : i / parts(), part = group_inside ? i / groups : i % parts();
    const Share of = share(blocks, groups, group);
    return {part / bands / classes, group, of.first, of.last, part / bands % classes, part % bands};
  }

  // The index of an item among those with the same channels.
  int64_t part(const Item& item) const { return (item.b * classes + item.index) * bands + item.band; }

  Place place(const Item& item, int64_t block) const {
    const int64_t d = block * kLanes<T>;
    return {item.b, d, min(kLanes<T>, channels - d)};
  }
};

// The largest number of lanes of an item, with `ring` vectors of rings per lane.
template <typename T>
int64_t packed_lanes(int64_t ring) {
  return clamp(kLaneBytes / (ring * static_cast<int64_t>(sizeof(Vec<T>))), 1, kMaxLanes);
}

// The same call for `count` channels from `first` on.
inline DepthwiseConv2dForward with_channels(DepthwiseConv2dForward p, int64_t first, int64_t count) {
  p.shape.channels = count;
  p.x.data = at(p.x, first * p.x.stride[1]);
  p.weight.data = at(p.weight, first * p.weight.stride[0]);
  if (p.bias) p.bias.data = at(p.bias, first * p.bias.stride[0]);
  if (p.y) p.y.data = at(p.y, first * p.y.stride[1]);
  return p;
}

// The address of a lane's row.
inline void* row_of(const Tensor<4>& image, const Place& place, int64_t h) {
  const int64_t* s = image.stride;
  return at(image, place.b * s[0] + place.d * s[1] + h * s[2]);
}

template <typename T>
void load_row(const Tensor<4>& image, const Place& place, int64_t h, int64_t width, Vec<T>* out) {
  const int64_t* s = image.stride;
  load_tile<T>(row_of(image, place, h), image.dtype, s[1], s[3], place.channels, width, out);
}

template <typename T>
void store_row(const Tensor<4>& image, const Place& place, int64_t h, int64_t width, const Vec<T>* row) {
  const int64_t* s = image.stride;
  store_tile<T>(row_of(image, place, h), image.dtype, s[1], s[3], place.channels, width, row);
}

inline void prefetch_row(const Tensor<4>& image, const Place& place, int64_t h, int64_t width) {
  const int64_t* s = image.stride;
  if (s[1] == 1) Expected<0>(row_of(image, place, h), image.dtype, 1, s[3], place.channels, width).all();
}

// Calls f(write), where write(w, v) writes pixel w of a row: directly to the image if its memory has the same vectors,
// else to `row`, which is stored afterwards.
template <typename T, typename F>
MTLKIT_INLINE void with_row(const Tensor<4>& image, const Place& place, int64_t h, int64_t width, Vec<T>* row, F f) {
  if (image.stride[1] == 1 && image.dtype == dtype_of<T> && place.channels == kLanes<T>) {
    T* const pixels = static_cast<T*>(row_of(image, place, h));
    const int64_t stride = image.stride[3];
    f([=](int64_t w, Vec<T> v) {
      if (w < width) store(pixels + w * stride, v);
    });
  } else {
    f([=](int64_t w, Vec<T> v) { row[w] = v; });
    store_row<T>(image, place, h, width, row);
  }
}

// The last k packed rows of a map, with `left` zeros before the pixels and zeros after them. Rows outside the map are
// zeros.
template <typename T, int kKernel>
class Ring {
 public:
  // `memory` must be zero; elements that are not pixels stay zero.
  Ring(Vec<T>* memory, const Vec<T>* zeros, int64_t pitch, int64_t left)
      : memory_(memory), zeros_(zeros), pitch_(pitch), left_(left) {}

  void begin(int64_t first, int64_t last) { first_ = first, last_ = last; }
  bool has(int64_t row) const { return row >= first_ && row < last_; }
  Vec<T>* pixels(int64_t row) const { return memory_ + row % kKernel * pitch_ + left_; }
  void clear_behind(int64_t row, int64_t width) const {
    for (Vec<T>* p = pixels(row); width < pitch_ - left_; ++width) p[width] = Vec<T>{};
  }
  const Vec<T>* padded(int64_t row) const { return has(row) ? memory_ + row % kKernel * pitch_ : zeros_; }
  void window(int64_t first, const Vec<T>** rows) const {
    for (int i = 0; i < kKernel; ++i) rows[i] = padded(first + i);
  }

 private:
  Vec<T>* memory_;
  const Vec<T>* zeros_;
  int64_t pitch_, left_, first_ = 0, last_ = 0;
};

// The filter of one block of channels and its bias, as vectors over the channels.
template <typename T, int kKernel>
struct Filter {
  Vec<T> taps[kKernel * kKernel], bias;

  void load(const DepthwiseConv2dForward& p, const Place& place) {
    const int64_t* s = p.weight.stride;
    const bool flat = s[1] == kKernel * s[2];
    const int rows = flat ? 1 : kKernel, columns = flat ? kKernel * kKernel : kKernel;
    for (int i = 0; i < rows; ++i) {
      load_tile<T>(at(p.weight, place.d * s[0] + i * s[1]), p.weight.dtype, s[0], s[2], place.channels, columns,
                   taps + i * columns);
    }
    bias = Vec<T>{};
    if (!p.bias) return;
    load_tile<T>(at(p.bias, place.d * p.bias.stride[0]), p.bias.dtype, p.bias.stride[0], 0, place.channels, 1, &bias);
  }

  // The filter for the input gradient: rotated by 180 degrees, without a bias.
  Filter turned() const {
    Filter result;
    for (int i = 0; i < kKernel * kKernel; ++i) result.taps[i] = taps[kKernel * kKernel - 1 - i];
    result.bias = Vec<T>{};
    return result;
  }
};
// The length of a packed row of x.
inline int64_t x_pitch(const DepthwiseConv2dShape& s) {
  return max(s.left + s.width, (whole(s.out_width) - 1) * s.stride + (s.kernel - 1) * s.dilation + 1);
}

// Loads the rows of x under row t of the output into the ring, from `next` on.
template <typename T, int kKernel>
void load_window(const DepthwiseConv2dForward& p, const Place& place, const Lattice& l, const Ring<T, kKernel>& x,
                 int64_t t, int64_t& next) {
  const int64_t first = t * p.shape.stride, last = first + kKernel;
  for (next = max(next, first); next < last; ++next) {
    if (x.has(next)) load_row<T>(p.x, place, l.base + l.step * next, p.shape.width, x.pixels(next));
  }
  for (int64_t u = next; u < next + p.shape.stride; ++u) {
    if (x.has(u)) prefetch_row(p.x, place, l.base + l.step * u, p.shape.width);
  }
}

// Calls f with the Pass for a shape: its type, kernel, stride, and whether it has a dilation.
template <template <typename, int, int, bool> class Pass, typename T, int kKernel, typename F>
int with_stride(const DepthwiseConv2dShape& s, F f) {
  if (s.stride == 1 && s.dilation == 1) return f(Pass<T, kKernel, 1, false>{});
  if (s.stride == 1) return f(Pass<T, kKernel, 1, true>{});
  return f(Pass<T, kKernel, 2, false>{});
}

template <template <typename, int, int, bool> class Pass, typename T, typename F>
int with_kernel(const DepthwiseConv2dShape& s, F f) {
  if (s.kernel == 3) return with_stride<Pass, T, 3>(s, f);
  if (s.kernel == 5) return with_stride<Pass, T, 5>(s, f);
  return with_stride<Pass, T, 7>(s, f);
}

template <template <typename, int, int, bool> class Pass, typename F>
int with_shape(const DepthwiseConv2dForward& p, F f) {
  return p.use_double ? with_kernel<Pass, double>(p.shape, f) : with_kernel<Pass, float>(p.shape, f);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
