// Depthwise 3 x 3 convolution, bias and SiLU.
//
// A work item is a run of rows of one image in one block of channels (one vector). Its rows pass through a ring of
// three, packed into contiguous vectors with a zero pixel at each end: packing settles layout, dtype, ragged channel
// counts and the border in one place, and every element is read from memory once. The backward pass rebuilds the
// convolution and sends its gradient through a second ring.
#include "cpu/dwconv_silu.h"

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kAbreast = 4;  // neighbouring pixels that share what they read
constexpr int kWindow = 3;       // rows and columns of the filter

int64_t padded(int64_t width) { return ceil_div(width, kAbreast) * kAbreast + 2; }

// Three packed rows of `pitch` vectors; pixel w of a row is vector w + 1, and what lies around the pixels is 0.
template <typename T>
class Ring {
 public:
  Ring(Vec<T>* memory, int64_t pitch) : memory_(memory), pitch_(pitch) {}

  Vec<T>* row(int64_t h) const { return memory_ + (h + kWindow) % kWindow * pitch_; }

  void clear(int64_t h) const { std::memset(row(h), 0, pitch_ * sizeof(Vec<T>)); }

  void clear_around(int64_t h, int64_t width) const {
    Vec<T>* r = row(h);
    r[0] = Vec<T>{};
    for (int64_t w = width + 1; w < pitch_; ++w) r[w] = Vec<T>{};
  }

 private:
  Vec<T>* memory_;
  int64_t pitch_;
};

// Where the work of an item lies.
struct Item {
  int64_t b, block, d, channels, first_row, last_row;
};

template <typename T>
struct Plan {
  int64_t blocks, runs, items, pitch;
  int threads;

  explicit Plan(const DwconvSiluForward& p)
      : blocks(ceil_div(p.shape.channels, kLanes<T>)),
        runs(min(p.shape.height, split(p.shape.batch * blocks, 64, p.threads))),
        items(p.shape.batch * runs * blocks),
        pitch(padded(p.shape.width)),
        threads(static_cast<int>(min(p.threads, items))) {}

  Item item(const DwconvSiluForward& p, int64_t index) const {
    const int64_t block = index % blocks, run = index / blocks % runs, d = block * kLanes<T>;
    const Share rows = share(p.shape.height, runs, run);
    return {index / blocks / runs, block, d, min(kLanes<T>, p.shape.channels - d), rows.first, rows.last};
  }
};

template <typename T>
void load_row(const Tensor<4>& image, const Item& item, int64_t h, int64_t width, Vec<T>* out) {
  const int64_t* s = image.stride;
  load_tile<T>(at(image, item.b * s[0] + item.d * s[1] + h * s[2]), image.dtype, s[1], s[3], item.channels, width, out);
}

template <typename T>
void store_row(const Tensor<4>& image, const Item& item, int64_t h, int64_t width, const Vec<T>* row) {
  const int64_t* s = image.stride;
  store_tile<T>(at(image, item.b * s[0] + item.d * s[1] + h * s[2]), image.dtype, s[1], s[3], item.channels, width,
                row);
}

// Row h of x into the ring; a row of zeros where the image has none.
template <typename T>
void enter(const DwconvSiluForward& p, const Item& item, int64_t h, const Ring<T>& ring) {
  if (h < 0 || h >= p.shape.height) return ring.clear(h);
  ring.clear_around(h, p.shape.width);
  load_row<T>(p.x, item, h, p.shape.width, ring.row(h) + 1);
}

// The filter of one block of channels and its bias, as vectors over the channels.
template <typename T>
struct Filter {
  Vec<T> taps[kTaps], bias;

  Filter(const DwconvSiluForward& p, const Item& item) : bias{} {
    const int64_t* s = p.weight.stride;
    const bool flat = s[1] == kWindow * s[2];
    const int rows = flat ? 1 : kWindow, columns = flat ? kTaps : kWindow;
    for (int i = 0; i < rows; ++i) {
      load_tile<T>(at(p.weight, item.d * s[0] + i * s[1]), p.weight.dtype, s[0], s[2], item.channels, columns,
                   taps + i * columns);
    }
    if (!p.bias) return;
    load_tile<T>(at(p.bias, item.d * p.bias.stride[0]), p.bias.dtype, p.bias.stride[0], 0, item.channels, 1, &bias);
  }

  // The filter that carries a gradient back: turned by half a turn, without a bias.
  Filter turned() const {
    Filter result = *this;
    for (int i = 0; i < kTaps; ++i) result.taps[i] = taps[kTaps - 1 - i];
    result.bias = Vec<T>{};
    return result;
  }
};

// Convolves the rows around h and calls f(w, sum) for each pixel, up to kAbreast - 1 pixels past the width.
template <typename T, typename F>
MTLKIT_INLINE void convolve(const Ring<T>& ring, int64_t h, int64_t width, const Filter<T>& filter, F f) {
  const Vec<T>* rows[kWindow] = {ring.row(h - 1), ring.row(h), ring.row(h + 1)};
  Vec<T> taps[kTaps];
  for (int i = 0; i < kTaps; ++i) taps[i] = filter.taps[i];
  for (int64_t w = 0; w < width; w += kAbreast) {
    Vec<T> sum[kAbreast];
    for (int k = 0; k < kAbreast; ++k) sum[k] = filter.bias;
#pragma GCC unroll 16
    for (int i = 0; i < kWindow; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kAbreast + 2; ++j) {
        const Vec<T> x = rows[i][w + j];
#pragma GCC unroll 16
        for (int k = 0; k < kAbreast; ++k) {
          if (j >= k && j < k + kWindow) sum[k] += x * taps[i * kWindow + j - k];
        }
      }
    }
#pragma GCC unroll 16
    for (int k = 0; k < kAbreast; ++k) f(w + k, sum[k]);
  }
}

template <typename T>
int forward(const DwconvSiluForward& p) {
  const Plan<T> plan(p);
  const int64_t size = (kWindow + 1) * plan.pitch;
  Scratch<Vec<T>> scratch(plan.threads * size);
  if (!scratch.ok()) return kOutOfMemory;

  on_threads(plan.threads, [&](int thread, int team) {
    const Ring<T> ring(scratch.get() + thread * size, plan.pitch);
    Vec<T>* out = scratch.get() + thread * size + kWindow * plan.pitch;
    const Share work = share(plan.items, team, thread);
    for (int64_t index = work.first; index < work.last; ++index) {
      const Item item = plan.item(p, index);
      const Filter<T> filter(p, item);
      enter<T>(p, item, item.first_row - 1, ring);
      enter<T>(p, item, item.first_row, ring);
      for (int64_t h = item.first_row; h < item.last_row; ++h) {
        enter<T>(p, item, h + 1, ring);
        convolve<T>(ring, h, p.shape.width, filter, [&](int64_t w, Vec<T> a) { out[w] = silu(a); });
        store_row<T>(p.y, item, h, p.shape.width, out);
      }
    }
  });
  return kOk;
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// Gradients of the filter and the bias of one block of channels, which a thread gathers over its items.
template <typename T>
struct FilterGradients {
  Vec<T> taps[kTaps], bias;

  // Adds those of one row, whose gradient before SiLU is `da`; x is the ring around it.
  void add_row(const Ring<T>& x, int64_t h, int64_t width, const Vec<T>* da) {
    const Vec<T>* rows[kWindow] = {x.row(h - 1), x.row(h), x.row(h + 1)};
    Vec<T> sum[kTaps] = {}, sum_bias{};
    for (int64_t w = 0; w < width; w += kAbreast) {
      Vec<T> g[kAbreast];
      for (int k = 0; k < kAbreast; ++k) {
        g[k] = da[w + k];
        sum_bias += g[k];
      }
#pragma GCC unroll 16
      for (int i = 0; i < kWindow; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < kAbreast + 2; ++j) {
          const Vec<T> v = rows[i][w + j];
#pragma GCC unroll 16
          for (int k = 0; k < kAbreast; ++k) {
            if (j >= k && j < k + kWindow) sum[i * kWindow + j - k] += g[k] * v;
          }
        }
      }
    }
    for (int i = 0; i < kTaps; ++i) taps[i] += sum[i];
    bias += sum_bias;
  }

  void add(const FilterGradients& other) {
    for (int i = 0; i < kTaps; ++i) taps[i] += other.taps[i];
    bias += other.bias;
  }
};

template <typename T>
int backward(const DwconvSiluBackward& q) {
  const DwconvSiluForward& p = q.forward;
  const Plan<T> plan(p);
  const int64_t size = (2 * kWindow + 1) * plan.pitch;
  Scratch<Vec<T>> scratch(plan.threads * size);
  Scratch<FilterGradients<T>> totals(plan.threads * plan.blocks);
  if (!scratch.ok() || !totals.ok()) return kOutOfMemory;
  std::memset(totals.get(), 0, plan.threads * plan.blocks * sizeof(FilterGradients<T>));

  on_threads(plan.threads, [&](int thread, int team) {
    const Ring<T> x(scratch.get() + thread * size, plan.pitch);
    const Ring<T> da(x.row(0) + kWindow * plan.pitch, plan.pitch);
    Vec<T>* row = da.row(0) + kWindow * plan.pitch;  // of dy, then of dx
    const Share work = share(plan.items, team, thread);
    for (int64_t index = work.first; index < work.last; ++index) {
      const Item item = plan.item(p, index);
      const Filter<T> filter(p, item), turned = filter.turned();
      FilterGradients<T> sum{};
      enter<T>(p, item, item.first_row - 2, x);
      enter<T>(p, item, item.first_row - 1, x);
      // The rows next to the run reach into it, so their gradient is needed too; what they add to the filter's belongs
      // to another item.
      for (int64_t h = item.first_row - 1; h <= item.last_row; ++h) {
        enter<T>(p, item, h + 1, x);
        if (h < 0 || h >= p.shape.height) {
          da.clear(h);
        } else {
          load_row<T>(q.dy, item, h, p.shape.width, row);
          Vec<T>* da_row = da.row(h) + 1;
          convolve<T>(x, h, p.shape.width, filter,
                      [&](int64_t w, Vec<T> a) { da_row[w] = row[w] * silu_and_slope(a).slope; });
          da.clear_around(h, p.shape.width);
          if (h >= item.first_row && h < item.last_row) sum.add_row(x, h, p.shape.width, da_row);
        }
        if (h <= item.first_row) continue;
        convolve<T>(da, h - 1, p.shape.width, turned, [&](int64_t w, Vec<T> dx) { row[w] = dx; });
        store_row<T>(q.dx, item, h - 1, p.shape.width, row);
      }
      totals.get()[thread * plan.blocks + item.block].add(sum);
    }
  });

  T* const dweight = static_cast<T*>(q.dweight);
  T* const dbias = static_cast<T*>(q.dbias);
  for (int64_t block = 0; block < plan.blocks; ++block) {
    FilterGradients<T>& sum = totals.get()[block];
    for (int64_t thread = 1; thread < plan.threads; ++thread) sum.add(totals.get()[thread * plan.blocks + block]);
    const int64_t d = block * kLanes<T>, channels = min(kLanes<T>, p.shape.channels - d);
    store_tile<T>(dweight + d * kTaps, dtype_of<T>, kTaps, 1, channels, kTaps, sum.taps);
    if (dbias) store_tile<T>(dbias + d, dtype_of<T>, 1, 0, channels, 1, &sum.bias);
  }
  return kOk;
}

}  // namespace

int dwconv_silu_forward(const DwconvSiluForward& p) { return p.use_double ? forward<double>(p) : forward<float>(p); }

int dwconv_silu_backward(const DwconvSiluBackward& p) {
  return p.forward.use_double ? backward<double>(p) : backward<float>(p);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
