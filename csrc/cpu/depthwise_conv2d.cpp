// Depthwise convolution of 3, 5 or 7, bias and SiLU.
//
// A work item is a band of rows of one image in a few neighbouring vectors of channels, its lanes. A lane's rows pass
// through a ring of k, packed into contiguous vectors with zeros at each end: packing settles layout, dtype, ragged
// channel counts and the border in one place, and every element is read from memory once. The backward pass sends the
// gradient of the convolution through a second ring; where SiLU follows, it rebuilds the convolution. The lanes take
// turns at every row, so that memory is read in runs of several lines, and a row is fetched while that before it is
// used.
//
// With a dilation d, rows h, h + d, h + 2 d, ... form a problem of their own without one: a class, of which there are
// d. Row t of its output reads the rows stride * t .. stride * t + k - 1 of its input.
#include "cpu/depthwise_conv2d.h"

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kAbreast = 4;           // neighbouring pixels that share what they read
constexpr int64_t kBandPixels = 1024;     // of a backward pass, at least: each band has sums and rows of its own
constexpr int64_t kMaxLanes = 8;          // of an item
constexpr int64_t kLaneBytes = 32 << 10;  // of the rings of an item, about: as much as the nearest caches hold

int64_t whole(int64_t width) { return ceil_div(width, kAbreast) * kAbreast; }

int64_t clamp(int64_t value, int64_t least, int64_t most) { return min(max(value, least), most); }

// As `ceil_div`, of any sign.
int64_t ceil_of(int64_t a, int64_t b) { return a > 0 ? ceil_div(a, b) : -(-a / b); }

// Rows of one class: `row` of the output is first + dilation * row, that of the input base + dilation * row.
struct Lattice {
  int64_t step, first, base;
  int64_t out_rows;           // of the output
  int64_t in_first, in_last;  // rows of the input that are there

  Lattice(const DepthwiseConv2dShape& s, int64_t index)
      : step(s.dilation),
        first(index),
        base(index * s.stride - s.top),
        out_rows(max(ceil_of(s.out_height - index, step), 0)),
        in_first(max(ceil_of(-base, step), 0)),
        in_last(max(ceil_of(s.height - base, step), in_first)) {}
};

// Where the work of an item lies: blocks [first, last) of one vector of channels each.
struct Item {
  int64_t b, group, first, last, index, band;
};

// A lane of an item.
struct Place {
  int64_t b, d, channels;
};

template <typename T>
struct Plan {
  int64_t channels, blocks, groups, classes, bands, items;
  bool group_inside;  // else neighbouring items share their filters, which take a while to load beside a small map
  int threads;

  Plan(const DepthwiseConv2dForward& p, int64_t ring, bool backward)
      : channels(p.shape.channels),
        blocks(ceil_div(channels, kLanes<T>)),
        groups(ceil_div(blocks, lanes(ring))),
        classes(p.shape.dilation),
        group_inside(p.shape.out_height * p.shape.out_width >= kBandPixels) {
    const int64_t rows = ceil_div(p.shape.out_height, classes), pixels = rows * p.shape.out_width;
    // The sums of a backward pass are of bands, so that they must not depend on the threads.
    bands = min(rows, backward ? max(pixels / kBandPixels, 1) : split(p.shape.batch * classes * groups, 64, p.threads));
    items = p.shape.batch * classes * bands * groups;
    threads = static_cast<int>(min(p.threads, items));
  }

  // The most lanes of an item, whose rings take `ring` vectors each.
  static int64_t lanes(int64_t ring) {
    return clamp(kLaneBytes / (ring * static_cast<int64_t>(sizeof(Vec<T>))), 1, kMaxLanes);
  }

  // Items of the same channels.
  int64_t parts() const { return items / groups; }

  Item item(int64_t i) const {
    const int64_t group = group_inside ? i % groups : i / parts(), part = group_inside ? i / groups : i % parts();
    const Share of = share(blocks, groups, group);
    return {part / bands / classes, group, of.first, of.last, part / bands % classes, part % bands};
  }

  // An item's place among those of the same channels.
  int64_t part(const Item& item) const { return (item.b * classes + item.index) * bands + item.band; }

  Place place(const Item& item, int64_t block) const {
    const int64_t d = block * kLanes<T>;
    return {item.b, d, min(kLanes<T>, channels - d)};
  }
};

// The pixels of a row in a lane.
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

// Calls f(write) where write(w, v) puts pixel w of a row into memory at once, if a vector of it is one of the image's,
// else into `row`, which is then stored.
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

// The last k packed rows of a map, `left` zeros before their pixels and zeros behind. Rows that the map does not have
// are all zeros, too.
template <typename T, int kKernel>
class Ring {
 public:
  // `memory` is zero at first; what is no pixel stays so.
  Ring(Vec<T>* memory, const Vec<T>* zeros, int64_t pitch, int64_t left)
      : memory_(memory), zeros_(zeros), pitch_(pitch), left_(left) {}

  void begin(int64_t first, int64_t last) { first_ = first, last_ = last; }
  bool has(int64_t row) const { return row >= first_ && row < last_; }
  Vec<T>* pixels(int64_t row) const { return memory_ + row % kKernel * pitch_ + left_; }
  void clear_behind(int64_t row, int64_t width) const {
    for (Vec<T>* p = pixels(row); width < pitch_ - left_; ++width) p[width] = Vec<T>{};
  }
  const Vec<T>* padded(int64_t row) const { return has(row) ? memory_ + row % kKernel * pitch_ : zeros_; }

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

  // The filter that carries a gradient back: turned by half a turn, without a bias.
  Filter turned() const {
    Filter result;
    for (int i = 0; i < kKernel * kKernel; ++i) result.taps[i] = taps[kKernel * kKernel - 1 - i];
    result.bias = Vec<T>{};
    return result;
  }
};

// ---- The three loops over a row -------------------------------------------------------------------------------------

// The sums of the pixels from w on, `kPixels` neighbours, to f(pixel, sum). Without a dilation they share what they
// read.
template <typename T, int kKernel, int kStride, bool kDilated, int kPixels, typename F>
MTLKIT_INLINE void convolve_pixels(const Vec<T>* const* rows, int64_t w, int64_t dilation,
                                   const Filter<T, kKernel>& filter, F f) {
  Vec<T> sum[kPixels];
  for (int k = 0; k < kPixels; ++k) sum[k] = filter.bias;
  const auto add = [&](int i) {
    const Vec<T>* row = rows[i] + w * kStride;
    const Vec<T>* taps = filter.taps + i * kKernel;
    if constexpr (kDilated) {
#pragma GCC unroll 8
      for (int j = 0; j < kKernel; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) sum[k] += row[j * dilation + k * kStride] * taps[j];
      }
    } else {
#pragma GCC unroll 32
      for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
        const Vec<T> x = row[m];
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) {
          const int j = m - k * kStride;
          if (j >= 0 && j < kKernel) sum[k] += x * taps[j];
        }
      }
    }
  };
  if constexpr (kKernel == 3) {  // the registers hold its taps
    add(0), add(1), add(2);
  } else {
#pragma GCC unroll 1
    for (int i = 0; i < kKernel; ++i) add(i);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kPixels; ++k) f(w + k, sum[k]);
}

// Calls f(w, sum) for each pixel of an output row, up to kAbreast - 1 pixels past the width.
template <typename T, int kKernel, int kStride, bool kDilated, typename F>
MTLKIT_INLINE void convolve(const Vec<T>* const* rows, int64_t width, int64_t dilation,
                            const Filter<T, kKernel>& filter, F f) {
  constexpr int kMany = 2 * kAbreast;
  int64_t w = 0;
  if constexpr (kKernel > 3) {
    for (; w + kMany <= width; w += kMany) {
      convolve_pixels<T, kKernel, kStride, kDilated, kMany>(rows, w, dilation, filter, f);
    }
  }
  for (; w < width; w += kAbreast) {
    convolve_pixels<T, kKernel, kStride, kDilated, kAbreast>(rows, w, dilation, filter, f);
  }
}

// The way back through stride 2: pairs of pixels of a padded input row, of which the even ones lie under even taps and
// the odd ones under odd taps, as the row itself does (`odd`). rows[i / 2] is the gradient's row under tap row i.
template <typename T, int kKernel>
MTLKIT_INLINE void spread(const Vec<T>* const* rows, int odd, int64_t pairs, const Filter<T, kKernel>& filter,
                          Vec<T>* out) {
  constexpr int kHalf = (kKernel - 1) / 2;
  for (int64_t c = 0; c < pairs; c += kAbreast) {
    Vec<T> sum[2 * kAbreast] = {};
    for (int i = odd; i < kKernel; i += 2) {
      const Vec<T>* row = rows[i / 2] + c;
      const Vec<T>* taps = filter.taps + i * kKernel;
#pragma GCC unroll 8
      for (int n = 0; n < kAbreast + kHalf; ++n) {
        const Vec<T> g = row[n];
#pragma GCC unroll 8
        for (int k = 0; k < kAbreast; ++k) {
          const int j = 2 * (k - n + kHalf);
          if (j >= 0 && j < kKernel) sum[2 * k] += g * taps[j];
          if (j >= 0 && j + 1 < kKernel) sum[2 * k + 1] += g * taps[j + 1];
        }
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 2 * kAbreast; ++k) out[2 * c + k] = sum[k];
  }
}

// As many rows of a filter's gradient as the registers hold with the gradients of kAbreast pixels.
template <int kKernel>
constexpr int kRowsAtOnce = kKernel == 3         ? 3
                            : kVectorBytes == 64 ? (kKernel == 5 ? 5 : 3)
                            : kKernel == 5       ? 2
                                                 : 1;

template <typename T, int kKernel, int kRows, int kStride, bool kDilated, int kPixels>
MTLKIT_INLINE void add_pixels(const Vec<T>* const* rows, int64_t w, int64_t dilation, const Vec<T>* da, Vec<T>* sum) {
  Vec<T> g[kPixels];
  for (int k = 0; k < kPixels; ++k) g[k] = da[w + k];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const Vec<T>* row = rows[i] + w * kStride;
    if constexpr (kDilated) {
#pragma GCC unroll 8
      for (int j = 0; j < kKernel; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) sum[i * kKernel + j] += g[k] * row[j * dilation + k * kStride];
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
        const Vec<T> x = row[m];
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) {
          const int j = m - k * kStride;
          if (j >= 0 && j < kKernel) sum[i * kKernel + j] += g[k] * x;
        }
      }
    }
  }
}

// Adds a row's part of the filter's gradient, whose gradient before SiLU is `da`; rows are those of x under it.
template <typename T, int kKernel, int kStride, bool kDilated, int kFirst = 0>
MTLKIT_INLINE void add_to_filter(const Vec<T>* const* rows, int64_t width, int64_t dilation, const Vec<T>* da,
                                 Vec<T>* taps) {
  constexpr int kRows = kFirst + kRowsAtOnce<kKernel> <= kKernel ? kRowsAtOnce<kKernel> : kKernel - kFirst;
  Vec<T> sum[kRows * kKernel] = {};
  int64_t w = 0;
  for (; w + kAbreast <= width; w += kAbreast) {
    add_pixels<T, kKernel, kRows, kStride, kDilated, kAbreast>(rows + kFirst, w, dilation, da, sum);
  }
  for (; w < width; ++w) add_pixels<T, kKernel, kRows, kStride, kDilated, 1>(rows + kFirst, w, dilation, da, sum);
  for (int i = 0; i < kRows * kKernel; ++i) taps[kFirst * kKernel + i] += sum[i];
  if constexpr (kFirst + kRows < kKernel) {
    add_to_filter<T, kKernel, kStride, kDilated, kFirst + kRows>(rows, width, dilation, da, taps);
  }
}

// ---- Both directions ------------------------------------------------------------------------------------------------

template <typename T, int kKernel, int kStride, bool kDilated>
struct Convolution {
  using V = Vec<T>;
  using Rows = Ring<T, kKernel>;

  static void pick(const Rows& ring, int64_t first, const V** rows) {
    for (int i = 0; i < kKernel; ++i) rows[i] = ring.padded(first + i);
  }

  // Rows of x up to `last` into the ring, those from `next` on.
  static void enter(const DepthwiseConv2dForward& p, const Place& place, const Lattice& l, const Rows& x, int64_t& next,
                    int64_t first, int64_t last) {
    for (next = max(next, first); next < last; ++next) {
      if (x.has(next)) load_row<T>(p.x, place, l.base + l.step * next, p.shape.width, x.pixels(next));
    }
    for (int64_t u = next; u < next + kStride; ++u) {
      if (x.has(u)) prefetch_row(p.x, place, l.base + l.step * u, p.shape.width);
    }
  }

  static int64_t x_pitch(const DepthwiseConv2dShape& s) {
    return max(s.left + s.width, (whole(s.out_width) - 1) * kStride + (kKernel - 1) * s.dilation + 1);
  }

  static int forward(const DepthwiseConv2dForward& p) {
    const DepthwiseConv2dShape& s = p.shape;
    const int64_t pitch = x_pitch(s), ring = kKernel * pitch;
    const Plan<T> plan(p, ring, false);
    const int64_t lanes = min(plan.lanes(ring), plan.blocks), size = pitch + whole(s.out_width) + lanes * ring;
    Scratch<V> scratch(plan.threads * size);
    Scratch<Filter<T, kKernel>> filters(plan.threads * lanes);
    if (!scratch.ok() || !filters.ok()) return kOutOfMemory;

    on_threads(plan.threads, [&](int thread, int team) {
      V* const zeros = scratch.get() + thread * size;
      std::memset(zeros, 0, size * sizeof(V));
      V* const out = zeros + pitch;
      V* const rings = out + whole(s.out_width);
      Filter<T, kKernel>* const filter = filters.get() + thread * lanes;
      int64_t group = -1;
      const Share work = share(plan.items, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item = plan.item(i);
        const Lattice l(s, item.index);
        const Share band = share(l.out_rows, plan.bands, item.band);
        int64_t next[kMaxLanes];
        for (int64_t lane = 0; lane < item.last - item.first; ++lane) {
          next[lane] = band.first * kStride;
          if (item.group != group) filter[lane].load(p, plan.place(item, item.first + lane));
        }
        group = item.group;
        for (int64_t t = band.first; t < band.last; ++t) {
          for (int64_t lane = 0; lane < item.last - item.first; ++lane) {
            const Place place = plan.place(item, item.first + lane);
            Rows x(rings + lane * ring, zeros, pitch, s.left);
            x.begin(l.in_first, l.in_last);
            enter(p, place, l, x, next[lane], t * kStride, t * kStride + kKernel);
            const V* rows[kKernel];
            pick(x, t * kStride, rows);
            with_row<T>(p.y, place, l.first + l.step * t, s.out_width, out, [&](auto write) {
              const auto convolve_to = [&](auto f) {
                convolve<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, filter[lane], f);
              };
              if (p.silu) {
                convolve_to([&](int64_t w, V a) { write(w, silu(a)); });
              } else {
                convolve_to(write);
              }
            });
          }
        }
      }
    });
    return kOk;
  }

  // A band of the backward pass: rows of dx, and rows of the output whose part of the filter's gradient it adds.
  struct Band {
    int64_t in_first, in_last, own_first, own_last;

    Band(const Lattice& l, int64_t bands, int64_t band) {
      const Share rows = share(l.in_last - l.in_first, bands, band);
      in_first = l.in_first + rows.first, in_last = l.in_first + rows.last;
      own_first = band == 0 ? 0 : owner(l, in_first);
      own_last = band == bands - 1 ? l.out_rows : owner(l, in_last);
    }

    // The first row of the output whose middle is at the input's row or below.
    static int64_t owner(const Lattice& l, int64_t row) {
      return clamp(ceil_of(row - kKernel / 2, kStride), 0, l.out_rows);
    }
  };

  static constexpr int kSums = kKernel * kKernel + 1;  // of the filter and the bias

  // The scratch memory of a thread, in vectors: zeros, a row, and the two rings of each lane.
  struct Layout {
    int64_t x_pitch, da_left, da_pitch, pairs, row, zeros, ring;

    explicit Layout(const DepthwiseConv2dShape& s) : x_pitch(Convolution::x_pitch(s)), pairs(0) {
      const int64_t reach = (kKernel - 1) * s.dilation;
      if constexpr (kStride == 1) {
        da_left = reach - s.left;
        da_pitch = max(da_left + whole(s.out_width), whole(s.width) + reach);
      } else {
        pairs = whole(ceil_div(s.width + s.left, 2));
        da_left = kKernel / 2;
        da_pitch = da_left + max(whole(s.out_width), pairs);
      }
      row = max(max(whole(s.out_width), whole(s.width)), 2 * pairs);
      zeros = max(x_pitch, da_pitch);
      ring = kKernel * (x_pitch + da_pitch);
    }
  };

  // A lane of a backward pass.
  struct Lane {
    Filter<T, kKernel> filter, back;
    V sum[kSums];
    int64_t next_x, next_dx;
    Rows x, da;
  };

  static int backward(const DepthwiseConv2dBackward& q) {
    const DepthwiseConv2dForward& p = q.forward;
    const Layout layout(p.shape);
    const Plan<T> plan(p, layout.ring, true);
    const int64_t lanes = min(plan.lanes(layout.ring), plan.blocks);
    const int64_t size = layout.zeros + layout.row + lanes * layout.ring;
    Scratch<V> scratch(plan.threads * size);
    Scratch<Lane> all(plan.threads * lanes);
    Scratch<V> sums(q.dweight ? plan.parts() * plan.blocks * kSums : 0);
    if (!scratch.ok() || !all.ok() || !sums.ok()) return kOutOfMemory;

    on_threads(plan.threads, [&](int thread, int team) {
      V* const zeros = scratch.get() + thread * size;
      std::memset(zeros, 0, size * sizeof(V));
      V* const row = zeros + layout.zeros;
      Lane* const lane = all.get() + thread * lanes;
      for (int64_t k = 0; k < lanes; ++k) {
        V* const ring = row + layout.row + k * layout.ring;
        lane[k].x = Rows(ring, zeros, layout.x_pitch, p.shape.left);
        lane[k].da = Rows(ring + kKernel * layout.x_pitch, zeros, layout.da_pitch, layout.da_left);
      }
      int64_t group = -1;
      const Share work = share(plan.items, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item = plan.item(i);
        for (int64_t k = 0; item.group != group && k < item.last - item.first; ++k) {
          lane[k].filter.load(p, plan.place(item, item.first + k));
          lane[k].back = kStride == 1 ? lane[k].filter.turned() : lane[k].filter;
        }
        group = item.group;
        run(q, plan, layout, item, lane, row);
        for (int64_t block = item.first; q.dweight && block < item.last; ++block) {
          V* const sum = sums.get() + (block * plan.parts() + plan.part(item)) * kSums;
          std::memcpy(sum, lane[block - item.first].sum, kSums * sizeof(V));
        }
      }
    });
    if (q.dweight) fold(q, plan, sums.get());
    return kOk;
  }

  static void run(const DepthwiseConv2dBackward& q, const Plan<T>& plan, const Layout& layout, const Item& item,
                  Lane* lanes, V* row) {
    const Lattice l(q.forward.shape, item.index);
    const Band band(l, plan.bands, item.band);
    // The rows next to the band reach into it, so that their gradient is needed too.
    const int64_t begin = min(band.own_first, clamp(ceil_of(band.in_first - kKernel + 1, kStride), 0, l.out_rows));
    const int64_t end = max(band.own_last, clamp(ceil_of(band.in_last, kStride), 0, l.out_rows));
    for (int64_t block = item.first; block < item.last; ++block) {
      Lane& lane = lanes[block - item.first];
      lane.x.begin(l.in_first, l.in_last);
      lane.da.begin(begin, end);
      lane.next_x = begin * kStride, lane.next_dx = band.in_first;
      std::memset(lane.sum, 0, sizeof lane.sum);
    }
    for (int64_t t = begin; t <= end; ++t) {
      for (int64_t block = item.first; block < item.last; ++block) {
        Lane& lane = lanes[block - item.first];
        const Place place = plan.place(item, block);
        if (t < end) take(q, place, l, band, t, lane, row);
        if (q.dx)
          go_back(q, layout, place, l, lane, row, t < end ? min(band.in_last, (t + 1) * kStride) : band.in_last);
      }
    }
  }

  // Row t of the output: its gradient into the ring, and its part of the filter's gradient.
  static void take(const DepthwiseConv2dBackward& q, const Place& place, const Lattice& l, const Band& band, int64_t t,
                   Lane& lane, V* row) {
    const DepthwiseConv2dForward& p = q.forward;
    const DepthwiseConv2dShape& s = p.shape;
    const bool own = q.dweight && t >= band.own_first && t < band.own_last;
    const V* rows[kKernel] = {};
    if (own || p.silu) {
      enter(p, place, l, lane.x, lane.next_x, t * kStride, t * kStride + kKernel);
      pick(lane.x, t * kStride, rows);
    }
    V* const da = lane.da.pixels(t);
    load_row<T>(q.dy, place, l.first + l.step * t, s.out_width, p.silu ? row : da);
    if (lane.da.has(t + 1)) prefetch_row(q.dy, place, l.first + l.step * (t + 1), s.out_width);
    if (p.silu) {
      convolve<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, lane.filter,
                                              [&](int64_t w, V a) { da[w] = row[w] * silu_and_slope(a).slope; });
      lane.da.clear_behind(t, s.out_width);
    }
    if (!own) return;
    add_to_filter<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, da, lane.sum);
    V total{};
    for (int64_t w = 0; w < s.out_width; ++w) total += da[w];
    lane.sum[kSums - 1] += total;
  }

  // Rows of dx up to `last`, those from the lane's next on.
  static void go_back(const DepthwiseConv2dBackward& q, const Layout& layout, const Place& place, const Lattice& l,
                      Lane& lane, V* row, int64_t last) {
    const DepthwiseConv2dShape& s = q.forward.shape;
    for (int64_t& u = lane.next_dx; u < last; ++u) {
      const int64_t h = l.base + l.step * u;
      const V* rows[kKernel];
      if constexpr (kStride == 1) {
        pick(lane.da, u - kKernel + 1, rows);
        with_row<T>(q.dx, place, h, s.width, row, [&](auto write) {
          convolve<T, kKernel, 1, kDilated>(rows, s.width, s.dilation, lane.back, write);
        });
      } else {
        const int odd = static_cast<int>(u & 1);
        for (int i = odd; i < kKernel; i += 2) rows[i / 2] = lane.da.padded((u - i) / 2);
        spread<T, kKernel>(rows, odd, layout.pairs, lane.back, row);
        store_row<T>(q.dx, place, h, s.width, row + s.left);
      }
    }
  }

  // Adds what the parts of each block have, in their order.
  static void fold(const DepthwiseConv2dBackward& q, const Plan<T>& plan, const V* sums) {
    on_threads(min(plan.threads, plan.blocks), [&](int thread, int team) {
      const Share work = share(plan.blocks, team, thread);
      for (int64_t block = work.first; block < work.last; ++block) {
        V total[kSums] = {};
        for (int64_t part = 0; part < plan.parts(); ++part) {
          for (int i = 0; i < kSums; ++i) total[i] += sums[(block * plan.parts() + part) * kSums + i];
        }
        const int64_t d = block * kLanes<T>, here = min(kLanes<T>, plan.channels - d);
        store_tile<T>(static_cast<T*>(q.dweight) + d * (kSums - 1), dtype_of<T>, kSums - 1, 1, here, kSums - 1, total);
        if (q.dbias) store_tile<T>(static_cast<T*>(q.dbias) + d, dtype_of<T>, 1, 0, here, 1, total + kSums - 1);
      }
    });
  }
};

// Calls f with the Convolution of a shape.
template <typename T, int kKernel, typename F>
int with_stride(const DepthwiseConv2dShape& s, F f) {
  if (s.stride == 1 && s.dilation == 1) return f(Convolution<T, kKernel, 1, false>{});
  if (s.stride == 1) return f(Convolution<T, kKernel, 1, true>{});
  return f(Convolution<T, kKernel, 2, false>{});
}

template <typename T, typename F>
int with_shape(const DepthwiseConv2dShape& s, F f) {
  if (s.kernel == 3) return with_stride<T, 3>(s, f);
  if (s.kernel == 5) return with_stride<T, 5>(s, f);
  return with_stride<T, 7>(s, f);
}

template <typename F>
int with_type(bool use_double, const DepthwiseConv2dShape& s, F f) {
  return use_double ? with_shape<double>(s, f) : with_shape<float>(s, f);
}

}  // namespace

int depthwise_conv2d_forward(const DepthwiseConv2dForward& p) {
  return with_type(p.use_double, p.shape, [&](auto convolution) { return convolution.forward(p); });
}

int depthwise_conv2d_backward(const DepthwiseConv2dBackward& p) {
  return with_type(p.forward.use_double, p.forward.shape, [&](auto convolution) { return convolution.backward(p); });
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
