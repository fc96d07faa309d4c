// Task interaction: the pass that gathers sums over a map, and the pass that scales its channels (formulas:
// common/interaction.h).
//
// A work item is an image or a run of its pixels, taken in bands: some pixels of all channels, packed into a panel of
// (C, pixels) whose size the second-level cache holds. That settles layout, dtype and ragged counts in one place. The
// projected map comes from the panel in blocks of registers, and each block goes straight into the sums.
#include "../common/interaction.h"

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "panel.h"
#include "threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// Bytes of a band that the second-level cache holds beside what is read and written of other panels.
constexpr int64_t kForwardBand = 128 << 10, kBackwardBand = 64 << 10;
constexpr int64_t kMostPixels = 512;
// A channel's moments are taken about the mean of its first pixels, which keeps them from drowning in a large mean.
constexpr int64_t kShiftPixels = 16;

template <typename T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

template <typename T>
MTLKIT_INLINE Vec<T> keep(Vec<T> v, Mask<T> mask) {
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Mask<T>>(v) & mask);
}

template <typename T>
MTLKIT_INLINE T total(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

template <typename T>
MTLKIT_INLINE Vec<T> relu(Vec<T> v) {
  return v < 0 ? Vec<T>{} : v;  // NaN stays
}

template <typename T>
MTLKIT_INLINE T exp_of(T x) {
  return exp2(splat(x) * kLog2E<T>)[0];
}

// Lane i of the result is set where first + i is in [from, to).
template <typename T>
MTLKIT_INLINE Mask<T> lanes_within(int64_t first, int64_t from, int64_t to) {
  Mask<T> mask;
  for (int i = 0; i < kLanes<T>; ++i) mask[i] = first + i >= from && first + i < to ? -1 : 0;
  return mask;
}

// Hands out aligned pieces of one block of memory; without memory it only counts what is asked for.
template <typename T>
class Arena {
 public:
  explicit Arena(T* memory = nullptr) : memory_(memory) {}

  T* take(int64_t count) {
    T* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(count, 64 / sizeof(T));
    return piece;
  }
  Vec<T>* take_vectors(int64_t count) { return reinterpret_cast<Vec<T>*>(take(count * kLanes<T>)); }
  int64_t used() const { return used_; }

 private:
  T* memory_;
  int64_t used_ = 0;
};

// How the map is cut, worked out once a call.
template <typename T>
struct Cut {
  int64_t channels, pixels, width, halo, band, pitch, start;
  int64_t splits, items, chunk;
  int threads;

  Cut(const InteractionReduceForward& p, bool energy, int64_t bytes)
      : channels(p.shape.channels), pixels(p.shape.pixels()), width(p.shape.width), halo(energy ? width : 0) {
    constexpr int64_t step = kColumns * kLanes<T>;
    const int64_t fitting = bytes / static_cast<int64_t>(channels * sizeof(T)) / step * step;
    band = min(max(min(max(fitting, 4 * kLanes<T>), kMostPixels), round_up(3 * halo, step)), round_up(pixels, step));
    start = round_up(halo, kLanes<T>);
    pitch = pitch_of<T>(start + round_up(band, kLanes<T>) + halo + kLanes<T>);
    splits = split(p.shape.batch, int64_t{1} << 30, p.threads);
    splits = min(splits, ceil_div(pixels, step));
    chunk = round_up(ceil_div(pixels, splits), step);
    splits = ceil_div(pixels, chunk);
    items = p.shape.batch * splits;
    threads = static_cast<int>(max(1, min(p.threads, items)));
  }

  int64_t image(int64_t item) const { return item / splits; }
  int64_t first(int64_t item) const { return item % splits * chunk; }
  int64_t last(int64_t item) const { return min(pixels, first(item) + chunk); }

  // Fills a panel with pixels [first, first + count) of all channels, and with the halo on both sides. Where that lies
  // outside the image, the nearest row stands in.
  void pack_band(const Tensor<3>& map, int64_t b, int64_t first, int64_t count, T* panel) const {
    for (int64_t l = first - halo; l < first + count + halo;) {
      const int64_t inside = l < 0 ? l + width : l >= pixels ? l - width : l;
      const int64_t end = l < 0               ? 0
                          : l < first         ? first
                          : l < first + count ? first + count
                          : l < pixels        ? pixels
                                              : l + width;
      const int64_t some = min(end, first + count + halo) - l;
      pack<T>(at(map, b * map.stride[0] + inside * map.stride[2]), map.dtype, map.stride[1], map.stride[2], channels,
              some, panel + start + l - first, pitch);
      l += some;
    }
  }
};

// The projection in the type of computation: rows of weight and bias, padded with zeros to whole blocks of rows.
template <typename T>
struct Projection {
  int64_t projected, rows, pitch;
  Scratch<T> memory;
  T *weight, *bias, *attn;

  explicit Projection(const InteractionReduceForward& p)
      : projected(p.weight ? p.shape.projected : 0),
        rows(round_up(projected, kRows)),
        pitch(pitch_of<T>(p.shape.channels)),
        memory(rows * pitch + round_up(rows, kLanes<T>) + pitch) {
    if (!ok()) return;
    weight = memory.get();
    bias = weight + rows * pitch;
    attn = bias + round_up(rows, kLanes<T>);
    std::fill(weight, attn + pitch, T{0});
    if (!projected) return;
    pack<T>(p.weight.data, p.weight.dtype, p.weight.stride[0], p.weight.stride[1], projected, p.shape.channels, weight,
            pitch);
    pack<T>(p.bias.data, p.bias.dtype, 0, p.bias.stride[0], 1, projected, bias, 0);
    if (p.attn) pack<T>(p.attn.data, p.attn.dtype, 0, p.attn.stride[0], 1, p.shape.channels, attn, 0);
  }

  bool ok() const { return memory.ok(); }
};

// logits[l] = attn . x_l for the pixels of a band, in whole vectors.
template <typename T>
void attention(const T* attn, const T* panel, int64_t pitch, int64_t channels, int64_t vectors, T* logits) {
  constexpr int64_t kSide = 4;  // independent sums, which hide each other's latency
  for (int64_t j = 0; j < vectors; j += kSide) {
    Vec<T> sum[kSide] = {};
    const int64_t some = min(kSide, vectors - j);
    for (int64_t c = 0; c < channels; ++c) {
      const T* row = panel + c * pitch + j * kLanes<T>;
      if (some == kSide) {
        for (int64_t i = 0; i < kSide; ++i) sum[i] += attn[c] * load(row + i * kLanes<T>);
      } else {
        for (int64_t i = 0; i < some; ++i) sum[i] += attn[c] * load(row + i * kLanes<T>);
      }
    }
    for (int64_t i = 0; i < some; ++i) store(logits + (j + i) * kLanes<T>, sum[i]);
  }
}

// ---- Forward --------------------------------------------------------------------------------------------------------

// What a thread gathers of an item.
template <typename T>
struct Gathered {
  T *panel, *shift, *share;
  Vec<T>*sums, *squares, *energies, *pooled;
  Mask<T>*down, *across;

  Gathered(Arena<T>& arena, const Cut<T>& cut, const Projection<T>& projection)
      : panel(arena.take(cut.channels * cut.pitch)),
        shift(arena.take(cut.channels)),
        share(arena.take(cut.band + kLanes<T>)),
        sums(arena.take_vectors(cut.channels)),
        squares(arena.take_vectors(cut.channels)),
        energies(arena.take_vectors(cut.channels)),
        pooled(arena.take_vectors(projection.rows)),
        down(reinterpret_cast<Mask<T>*>(arena.take_vectors(ceil_div(cut.band, kLanes<T>)))),
        across(reinterpret_cast<Mask<T>*>(arena.take_vectors(ceil_div(cut.band, kLanes<T>)))) {}
};

// The sums of an item, as they are added up over the items of an image: 2 C moments about the shift, P pooled values,
// energy, and the largest logit and the sum of exponentials about it.
template <typename T>
struct Sums {
  int64_t channels, projected;

  int64_t size() const { return 2 * channels + projected + 3; }
  T* sum(T* item) const { return item; }
  T* square(T* item) const { return item + channels; }
  T* pooled(T* item) const { return item + 2 * channels; }
  T* energy(T* item) const { return pooled(item) + projected; }
  T* softmax(T* item) const { return energy(item) + 1; }
};

template <typename T>
void find_shift(const InteractionReduceForward& p, const Cut<T>& cut, int64_t b, T* shift) {
  const int64_t some = min(cut.pixels, kShiftPixels);
  T rows[kLanes<T> * kShiftPixels];
  for (int64_t c = 0; c < cut.channels; c += kLanes<T>) {
    const int64_t count = min(kLanes<T>, cut.channels - c);
    pack<T>(at(p.x, b * p.x.stride[0] + c * p.x.stride[1]), p.x.dtype, p.x.stride[1], p.x.stride[2], count, some, rows,
            kShiftPixels);
    for (int64_t i = 0; i < count; ++i) {
      T sum = 0;
      for (int64_t l = 0; l < some; ++l) sum += rows[i * kShiftPixels + l];
      sum /= static_cast<T>(some);
      shift[c + i] = sum - sum == 0 ? sum : 0;  // about inf or NaN nothing can be counted
    }
  }
}

// Adds the moments of a band: what is behind its last pixel is left out.
template <typename T>
void add_moments(const Cut<T>& cut, int64_t count, const Gathered<T>& g) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = count / lanes;
  const Mask<T> rest = lanes_within<T>(whole * lanes, 0, count);
  for (int64_t c = 0; c < cut.channels; ++c) {
    const T* row = g.panel + c * cut.pitch + cut.start;
    const Vec<T> shift = splat(g.shift[c]);
    Vec<T> sum[2] = {}, square[2] = {};
    int64_t j = 0;
    for (; j + 2 <= whole; j += 2) {
      const Vec<T> v = load(row + j * lanes) - shift, w = load(row + (j + 1) * lanes) - shift;
      sum[0] += v, sum[1] += w;
      square[0] += v * v, square[1] += w * w;
    }
    if (j < whole) {
      const Vec<T> v = load(row + j * lanes) - shift;
      sum[0] += v, square[0] += v * v;
    }
    if (whole * lanes < count) {
      const Vec<T> v = keep<T>(load(row + whole * lanes) - shift, rest);
      sum[1] += v, square[1] += v * v;
    }
    g.sums[c] += sum[0] + sum[1];
    g.squares[c] += square[0] + square[1];
  }
}

// Adds the absolute differences of each pixel of a band from those below and to the right of it.
template <typename T>
void add_energy(const Cut<T>& cut, int64_t first, int64_t count, const Gathered<T>& g) {
  constexpr int lanes = kLanes<T>;
  const int64_t vectors = ceil_div(count, lanes);
  for (int64_t j = 0; j < vectors; ++j) {
    const int64_t l = first + j * lanes, end = first + count;
    g.down[j] = lanes_within<T>(l, 0, min(end, cut.pixels - cut.width));
    g.across[j] = lanes_within<T>(l, 0, end);
    for (int i = 0; i < lanes; ++i) g.across[j][i] &= (l + i + 1) % cut.width ? -1 : 0;
  }
  for (int64_t c = 0; c < cut.channels; ++c) {
    const T* row = g.panel + c * cut.pitch + cut.start;
    Vec<T> down{}, across{};
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> v = load(row + j * lanes);
      down += keep<T>(abs(load(row + j * lanes + cut.width) - v), g.down[j]);
      across += keep<T>(abs(load(row + j * lanes + 1) - v), g.across[j]);
    }
    g.energies[c] += down + across;
  }
}

// Adds the projections of a band, each pixel by its share. With attention the shares are exponentials about the largest
// logit so far, and what was summed about a smaller one is scaled down.
template <typename T>
void add_pooled(const Cut<T>& cut, const Projection<T>& projection, int64_t count, bool attend, const Gathered<T>& g,
                T* softmax) {
  constexpr int lanes = kLanes<T>;
  const int64_t vectors = ceil_div(count, lanes);
  const T* x = g.panel + cut.start;
  if (attend) {
    attention<T>(projection.attn, x, cut.pitch, cut.channels, vectors, g.share);
    T largest = softmax[0];
    for (int64_t l = 0; l < count; ++l) largest = g.share[l] > largest ? g.share[l] : largest;
    const T about = std::isinf(largest) && largest < 0 ? 0 : largest;
    if (largest > softmax[0]) {
      const T less = exp_of<T>(softmax[0] - about);
      softmax[1] *= less;
      for (int64_t r = 0; r < projection.rows; ++r) g.pooled[r] *= less;
      softmax[0] = largest;
    }
    Vec<T> sum{};
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> e = exp2((load(g.share + j * lanes) - about) * kLog2E<T>);
      const Vec<T> live = keep<T>(e, lanes_within<T>(j * lanes, 0, count));
      store(g.share + j * lanes, live);
      sum += live;
    }
    softmax[1] += total<T>(sum);
  } else {
    for (int64_t l = 0; l < vectors * lanes; ++l) g.share[l] = l < count;
  }
  for (int64_t r = 0; r < projection.rows; r += kRows) {
    by_columns(vectors, [&](auto columns, int64_t j) {
      Vec<T> z[kRows][columns()];
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        for (int k = 0; k < columns(); ++k) z[i][k] = splat(projection.bias[r + i]);
      }
      multiply<T, columns()>(projection.weight + r * projection.pitch, projection.pitch, x + j * lanes, cut.pitch,
                             cut.channels, z);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        Vec<T> sum{};
        for (int k = 0; k < columns(); ++k) sum += relu<T>(z[i][k]) * load(g.share + (j + k) * lanes);
        g.pooled[r + i] += sum;
      }
    });
  }
}

template <typename T>
void gather(const InteractionReduceForward& p, const Cut<T>& cut, const Projection<T>& projection, int64_t item,
            const Gathered<T>& g, const Sums<T>& sums, T* out) {
  const int64_t b = cut.image(item);
  T* softmax = sums.softmax(out);
  softmax[0] = -std::numeric_limits<T>::infinity();
  softmax[1] = 0;
  for (Vec<T>* v : {g.sums, g.squares, g.energies}) std::fill(v, v + cut.channels, Vec<T>{});
  std::fill(g.pooled, g.pooled + projection.rows, Vec<T>{});
  find_shift<T>(p, cut, b, g.shift);
  for (int64_t first = cut.first(item); first < cut.last(item); first += cut.band) {
    const int64_t count = min(cut.band, cut.last(item) - first);
    cut.pack_band(p.x, b, first, count, g.panel);
    add_moments<T>(cut, count, g);
    if (p.energy) add_energy<T>(cut, first, count, g);
    if (p.weight) add_pooled<T>(cut, projection, count, static_cast<bool>(p.attn), g, softmax);
  }
  T energy = 0;
  for (int64_t c = 0; c < cut.channels; ++c) {
    sums.sum(out)[c] = total<T>(g.sums[c]);
    sums.square(out)[c] = total<T>(g.squares[c]);
    energy += total<T>(g.energies[c]);
  }
  for (int64_t r = 0; r < projection.projected; ++r) sums.pooled(out)[r] = total<T>(g.pooled[r]);
  *sums.energy(out) = energy;
}

// Adds up the items of image b, in their order, and writes its results.
template <typename T>
void finish(const InteractionReduceForward& p, const Cut<T>& cut, const Sums<T>& sums, int64_t b, T* items, T* shift) {
  const int64_t C = cut.channels, P = sums.projected;
  T* const all = items;
  for (int64_t s = 1; s < cut.splits; ++s) {
    T* item = items + s * sums.size();
    if (p.attn) {
      T *mine = sums.softmax(all), *other = sums.softmax(item);
      const T largest = other[0] > mine[0] ? other[0] : mine[0];
      const T about = std::isinf(largest) && largest < 0 ? 0 : largest;
      const T less = exp_of<T>(mine[0] - about), less_other = exp_of<T>(other[0] - about);
      for (int64_t r = 0; r < P; ++r) {
        sums.pooled(all)[r] = sums.pooled(all)[r] * less + sums.pooled(item)[r] * less_other;
      }
      mine[1] = mine[1] * less + other[1] * less_other;
      mine[0] = largest;
    } else {
      for (int64_t r = 0; r < P; ++r) sums.pooled(all)[r] += sums.pooled(item)[r];
    }
    for (int64_t i = 0; i < 2 * C; ++i) all[i] += item[i];
    *sums.energy(all) += *sums.energy(item);
  }
  const T pixels = static_cast<T>(cut.pixels);
  find_shift<T>(p, cut, b, shift);
  for (int64_t c = 0; c < C; ++c) {
    const T mean = sums.sum(all)[c] / pixels, variance = sums.square(all)[c] / pixels - mean * mean;
    static_cast<T*>(p.mean)[b * C + c] = shift[c] + mean;
    static_cast<T*>(p.variance)[b * C + c] = variance < 0 ? 0 : variance;  // NaN stays
  }
  if (p.energy) static_cast<T*>(p.energy)[b] = *sums.energy(all) / (static_cast<T>(C) * pixels);
  const T* softmax = sums.softmax(all);
  for (int64_t r = 0; r < P; ++r) {
    static_cast<T*>(p.pooled)[b * P + r] = sums.pooled(all)[r] / (p.attn ? softmax[1] : pixels);
  }
  if (p.attn) std::copy(softmax, softmax + 2, static_cast<T*>(p.softmax) + 2 * b);
}

template <typename T>
int reduce_forward(const InteractionReduceForward& p) {
  const Cut<T> cut(p, p.energy != nullptr, kForwardBand);
  const Projection<T> projection(p);
  const Sums<T> sums{cut.channels, projection.projected};
  Arena<T> count;
  Gathered<T>(count, cut, projection);
  Scratch<T> items(cut.items * sums.size()), scratch(cut.threads * count.used());
  if (!projection.ok() || !items.ok() || !scratch.ok()) return kOutOfMemory;
  on_threads(cut.threads, [&](int thread, int team) {
    Arena<T> arena(scratch.get() + thread * count.used());
    const Gathered<T> g(arena, cut, projection);
    const Share work = share(cut.items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      gather<T>(p, cut, projection, item, g, sums, items.get() + item * sums.size());
    }
  });
  for (int64_t b = 0; b < p.shape.batch; ++b) {
    finish<T>(p, cut, sums, b, items.get() + b * cut.splits * sums.size(), scratch.get());
  }
  return kOk;
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// With M_pl = dpooled_p share_l where z_pl > 0, else 0:
//
//   dweight = sum_l M x^T      dbias = sum_l M      dx = weight^T M
//
// and under attention, with t_l = share_l (sum_p dpooled_p (z_pl - pooled_p)): dattn = sum_l t x^T and dx += attn t, so
// that t is one more row of M, and attn one more row of the weight.
template <typename T>
struct Pulled {
  T *x, *x_pixels, *y, *m, *share, *dshare, *dpooled, *dweight;
  T *mean, *slope, *level, *factor;
  Vec<T>* dbias;
  Mask<T>*up, *down, *left, *right;

  Pulled(Arena<T>& arena, const Cut<T>& cut, int64_t rows, int64_t wide, bool weights)
      : x(arena.take(cut.channels * cut.pitch)),
        x_pixels(arena.take(weights ? (cut.band + kLanes<T>)*wide : 0)),
        y(arena.take(cut.channels * cut.pitch)),
        m(arena.take(rows * cut.pitch)),
        share(arena.take(cut.band + kLanes<T>)),
        dshare(arena.take(cut.band + kLanes<T>)),
        dpooled(arena.take(rows)),
        dweight(arena.take(weights ? rows * wide : 0)),
        mean(arena.take(cut.channels)),
        slope(arena.take(cut.channels)),
        level(arena.take(cut.channels)),
        factor(arena.take(cut.channels)),
        dbias(arena.take_vectors(rows)) {
    for (Mask<T>** mask : {&up, &down, &left, &right}) {
      *mask = reinterpret_cast<Mask<T>*>(arena.take_vectors(ceil_div(cut.band, kLanes<T>)));
    }
  }
};

template <typename T>
struct Backward {
  const InteractionReduceBackward& q;
  const InteractionReduceForward& p;
  Cut<T> cut;
  Projection<T> projection;
  int64_t rows, depth, wide, weight_pitch;
  bool pooled, weights;
  Scratch<T> transposed;  // (C, P), and attn in one more column

  explicit Backward(const InteractionReduceBackward& params)
      : q(params),
        p(params.forward),
        cut(p, q.denergy != nullptr, kBackwardBand),
        projection(p),
        rows(round_up(projection.projected + (p.attn ? 1 : 0), kRows)),
        depth(projection.projected + (p.attn ? 1 : 0)),
        wide(pitch_of<T>(cut.channels)),
        weight_pitch(pitch_of<T>(depth)),
        pooled(q.dpooled != nullptr),
        weights(pooled && (q.dweight || q.dbias || q.dattn)),
        transposed(pooled ? round_up(cut.channels, kRows) * weight_pitch : 0) {
    if (!ok() || !pooled) return;
    std::fill(transposed.get(), transposed.get() + round_up(cut.channels, kRows) * weight_pitch, T{0});
    for (int64_t c = 0; c < cut.channels; ++c) {
      T* row = transposed.get() + c * weight_pitch;
      for (int64_t r = 0; r < projection.projected; ++r) row[r] = projection.weight[r * projection.pitch + c];
      if (p.attn) row[projection.projected] = projection.attn[c];
    }
  }

  bool ok() const { return projection.ok() && transposed.ok(); }

  // What is the same for all pixels of an image.
  void load_image(int64_t b, const Pulled<T>& g) const {
    const int64_t C = cut.channels, P = projection.projected;
    const T pixels = static_cast<T>(cut.pixels);
    for (int64_t c = 0; c < C; ++c) {
      const auto given = [&](const void* values) { return values ? static_cast<const T*>(values)[b * C + c] : 0; };
      g.mean[c] = given(p.mean);
      g.slope[c] = 2 * given(q.dvariance) / pixels;
      g.level[c] = given(q.dmean) / pixels;
      g.factor[c] = given(q.factors);
    }
    std::fill(g.dpooled, g.dpooled + rows, T{0});
    if (pooled) std::copy_n(static_cast<const T*>(q.dpooled) + b * P, P, g.dpooled);
  }

  // The share of each pixel of a band in the pooled values, 0 behind its last.
  void find_share(int64_t b, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t vectors = ceil_div(count, lanes);
    if (!p.attn) {
      for (int64_t l = 0; l < vectors * lanes; ++l) g.share[l] = l < count ? 1 / static_cast<T>(cut.pixels) : 0;
      return;
    }
    const T* softmax = static_cast<const T*>(p.softmax) + 2 * b;
    const T about = std::isinf(softmax[0]) && softmax[0] < 0 ? 0 : softmax[0];
    attention<T>(projection.attn, g.x + cut.start, cut.pitch, cut.channels, vectors, g.share);
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> e = exp2((load(g.share + j * lanes) - about) * kLog2E<T>) / softmax[1];
      store(g.share + j * lanes, keep<T>(e, lanes_within<T>(j * lanes, 0, count)));
    }
  }

  // Fills M, and adds to dbias.
  void pull_projection(int64_t b, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t vectors = ceil_div(count, lanes), P = projection.projected;
    const T* x = g.x + cut.start;
    std::fill(g.dshare, g.dshare + vectors * lanes, T{0});
    for (int64_t r = 0; r < projection.rows; r += kRows) {
      by_columns(vectors, [&](auto columns, int64_t j) {
        Vec<T> z[kRows][columns()];
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          for (int k = 0; k < columns(); ++k) z[i][k] = splat(projection.bias[r + i]);
        }
        multiply<T, columns()>(projection.weight + r * projection.pitch, projection.pitch, x + j * lanes, cut.pitch,
                               cut.channels, z);
        if (p.attn) {
          for (int k = 0; k < columns(); ++k) {
            Vec<T> sum{};
#pragma GCC unroll 12
            for (int i = 0; i < kRows; ++i) sum += relu<T>(z[i][k]) * g.dpooled[r + i];
            store(g.dshare + (j + k) * lanes, load(g.dshare + (j + k) * lanes) + sum);
          }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          Vec<T> sum{};
          for (int k = 0; k < columns(); ++k) {
            const Vec<T> pulled = g.dpooled[r + i] * load(g.share + (j + k) * lanes);
            const Vec<T> m = z[i][k] <= 0 ? Vec<T>{} : pulled;
            store(g.m + (r + i) * cut.pitch + (j + k) * lanes, m);
            sum += m;
          }
          g.dbias[r + i] += sum;
        }
      });
    }
    if (!p.attn) return;
    T mean = 0;
    for (int64_t r = 0; r < P; ++r) mean += g.dpooled[r] * static_cast<const T*>(p.pooled)[b * P + r];
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t l = j * lanes;
      store(g.m + P * cut.pitch + l, load(g.share + l) * (load(g.dshare + l) - mean));
    }
  }

  void pull_weights(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    pack<T>(at(p.x, b * p.x.stride[0] + first * p.x.stride[2]), p.x.dtype, p.x.stride[2], p.x.stride[1], count,
            cut.channels, g.x_pixels, wide);
    for (int64_t r = 0; r < rows; r += kRows) {
      by_columns(ceil_div(cut.channels, lanes), [&](auto columns, int64_t j) {
        T* target = g.dweight + r * wide + j * lanes;
        Vec<T> sum[kRows][columns()];
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          for (int k = 0; k < columns(); ++k) sum[i][k] = load(target + i * wide + k * lanes);
        }
        multiply<T, columns()>(g.m + r * cut.pitch, cut.pitch, g.x_pixels + j * lanes, wide, count, sum);
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          for (int k = 0; k < columns(); ++k) store(target + i * wide + k * lanes, sum[i][k]);
        }
      });
    }
  }

  // The derivative of the absolute differences of a pixel from its four neighbours: a count of signs.
  MTLKIT_INLINE Vec<T> pull_energy(const T* x, int64_t j, const Pulled<T>& g) const {
    const Vec<T> v = load(x);
    const auto sign = [&](int64_t step, Mask<T> mask) {
      const Vec<T> other = load(x + step);
      return ((v < other) - (v > other)) & mask;
    };
    const Mask<T> signs =
        sign(-cut.width, g.up[j]) + sign(cut.width, g.down[j]) + sign(-1, g.left[j]) + sign(1, g.right[j]);
    return __builtin_convertvector(signs, Vec<T>);
  }

  void find_neighbours(int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    for (int64_t j = 0; j < ceil_div(count, lanes); ++j) {
      const int64_t l = first + j * lanes;
      g.up[j] = lanes_within<T>(l, cut.width, cut.pixels);
      g.down[j] = lanes_within<T>(l, 0, cut.pixels - cut.width);
      for (int i = 0; i < lanes; ++i) {
        g.left[j][i] = (l + i) % cut.width ? -1 : 0;
        g.right[j][i] = (l + i + 1) % cut.width ? -1 : 0;
      }
    }
  }

  // Writes the gradient of a band of x. It takes the place of dy in its panel.
  void pull_map(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t C = cut.channels;
    const T* x = g.x + cut.start;
    const T energy = q.denergy ? static_cast<const T*>(q.denergy)[b] / static_cast<T>(C * cut.pixels) : 0;
    if (q.denergy) find_neighbours(first, count, g);
    if (q.dy) {
      pack<T>(at(q.dy, b * q.dy.stride[0] + first * q.dy.stride[2]), q.dy.dtype, q.dy.stride[1], q.dy.stride[2], C,
              count, g.y, cut.pitch);
    }
    for (int64_t c = 0; c < C; c += kRows) {
      by_columns(ceil_div(count, lanes), [&](auto columns, int64_t j) {
        Vec<T> sum[kRows][columns()] = {};
        if (pooled) {
          multiply<T, columns()>(transposed.get() + c * weight_pitch, weight_pitch, g.m + j * lanes, cut.pitch, depth,
                                 sum);
        }
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          if (c + i >= C) continue;
          for (int k = 0; k < columns(); ++k) {
            const T* here = x + (c + i) * cut.pitch + (j + k) * lanes;
            T* out = g.y + (c + i) * cut.pitch + (j + k) * lanes;
            Vec<T> dx = sum[i][k] + ((load(here) - g.mean[c + i]) * g.slope[c + i] + g.level[c + i]);
            if (q.denergy) dx += pull_energy(here, j + k, g) * energy;
            if (q.dy) dx += load(out) * g.factor[c + i];
            store(out, dx);
          }
        }
      });
    }
    unpack<T>(at(q.dx, b * q.dx.stride[0] + first * q.dx.stride[2]), q.dx.dtype, q.dx.stride[1], q.dx.stride[2], C,
              count, g.y, cut.pitch);
  }

  void pull(int64_t item, const Pulled<T>& g) const {
    const int64_t b = cut.image(item);
    load_image(b, g);
    for (int64_t first = cut.first(item); first < cut.last(item); first += cut.band) {
      const int64_t count = min(cut.band, cut.last(item) - first);
      cut.pack_band(p.x, b, first, count, g.x);
      if (pooled) {
        find_share(b, count, g);
        pull_projection(b, count, g);
        if (weights) pull_weights(b, first, count, g);
      }
      if (q.dx) pull_map(b, first, count, g);
    }
  }

  int run() const {
    Arena<T> count;
    Pulled<T>(count, cut, rows, wide, weights);
    Scratch<T> scratch(cut.threads * count.used());
    if (!ok() || !scratch.ok()) return kOutOfMemory;
    std::memset(scratch.get(), 0, cut.threads * count.used() * sizeof(T));
    on_threads(cut.threads, [&](int thread, int team) {
      Arena<T> arena(scratch.get() + thread * count.used());
      const Pulled<T> g(arena, cut, rows, wide, weights);
      const Share work = share(cut.items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) pull(item, g);
    });
    if (weights) write_weights(scratch.get(), count.used());
    return kOk;
  }

  // Adds up what the threads have gathered, in their order.
  void write_weights(T* memory, int64_t size) const {
    const int64_t C = cut.channels, P = projection.projected;
    Arena<T> arena(memory);
    const Pulled<T> all(arena, cut, rows, wide, weights);
    for (int thread = 1; thread < cut.threads; ++thread) {
      Arena<T> other_arena(memory + thread * size);
      const Pulled<T> other(other_arena, cut, rows, wide, weights);
      for (int64_t i = 0; i < rows * wide; ++i) all.dweight[i] += other.dweight[i];
      for (int64_t r = 0; r < rows; ++r) all.dbias[r] += other.dbias[r];
    }
    for (int64_t r = 0; r < P; ++r) {
      if (q.dweight) std::copy_n(all.dweight + r * wide, C, static_cast<T*>(q.dweight) + r * C);
      if (q.dbias) static_cast<T*>(q.dbias)[r] = total<T>(all.dbias[r]);
    }
    if (q.dattn) std::copy_n(all.dweight + P * wide, C, static_cast<T*>(q.dattn));
  }
};

// ---- Scaling --------------------------------------------------------------------------------------------------------

bool pixels_side_by_side(const Tensor<3>& map, const InteractionShape& s) {
  return map.stride[2] == 1 && (map.stride[1] != 1 || s.pixels() > 1);
}

// y = x factors, row by row: of pixels with one factor, or of channels with a factor each.
template <typename T, typename E>
void scale(const InteractionScaleForward& p) {
  constexpr int lanes = kLanes<T>;
  using S = typename E::Storage;
  const int64_t C = p.shape.channels, L = p.shape.pixels(), B = p.shape.batch;
  const T* factors = static_cast<const T*>(p.factors);
  const bool by_pixels = pixels_side_by_side(p.x, p.shape);
  const int64_t inner = by_pixels ? L : C, outer = by_pixels ? C : L;
  const int64_t x_step = p.x.stride[by_pixels ? 1 : 2], y_step = p.y.stride[by_pixels ? 1 : 2];
  const int64_t whole = inner / lanes * lanes, rest = inner - whole;
  on_threads(min(p.threads, B * outer), [&](int thread, int team) {
    const Share work = share(B * outer, team, thread);
    for (int64_t row = work.first; row < work.last; ++row) {
      const int64_t b = row / outer, o = row % outer;
      const S* x = static_cast<const S*>(p.x.data) + b * p.x.stride[0] + o * x_step;
      S* y = static_cast<S*>(p.y.data) + b * p.y.stride[0] + o * y_step;
      const T* factor = factors + b * C + (by_pixels ? o : 0);
      if (by_pixels) {
        const Vec<T> f = splat(*factor);
        for (int64_t i = 0; i < whole; i += lanes) E::write(y + i, E::read(x + i, T{}) * f);
        if (rest) write_some<T, E>(y + whole, read_some<T, E>(x + whole, rest) * f, rest);
      } else {
        for (int64_t i = 0; i < whole; i += lanes) E::write(y + i, E::read(x + i, T{}) * load(factor + i));
        for (int64_t i = whole; i < inner; ++i) {
          write_some<T, E>(y + i, read_some<T, E>(x + i, 1) * factor[i], 1);
        }
      }
    }
  });
}

// dfactors = sum_l x dy. Sums run over blocks of pixels and then over the blocks.
template <typename T, typename E>
int pull_factors(const InteractionScaleBackward& q) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t kBlock = 64;
  using S = typename E::Storage;
  const InteractionScaleForward& p = q.forward;
  const int64_t C = p.shape.channels, L = p.shape.pixels(), B = p.shape.batch;
  T* dfactors = static_cast<T*>(q.dfactors);
  const S *const x = static_cast<const S*>(p.x.data), *const dy = static_cast<const S*>(q.dy.data);
  if (pixels_side_by_side(p.x, p.shape)) {
    on_threads(min(p.threads, B * C), [&](int thread, int team) {
      const Share work = share(B * C, team, thread);
      for (int64_t row = work.first; row < work.last; ++row) {
        const S* a = x + row / C * p.x.stride[0] + row % C * p.x.stride[1];
        const S* d = dy + row / C * q.dy.stride[0] + row % C * q.dy.stride[1];
        Vec<T> sum{};
        int64_t l = 0;
        for (; l + kBlock * lanes / 4 <= L; l += kBlock * lanes / 4) {
          Vec<T> part[4] = {};
          for (int64_t i = l; i < l + kBlock * lanes / 4; i += 4 * lanes) {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) part[k] += E::read(a + i + k * lanes, T{}) * E::read(d + i + k * lanes, T{});
          }
          sum += (part[0] + part[1]) + (part[2] + part[3]);
        }
        for (; l + lanes <= L; l += lanes) sum += E::read(a + l, T{}) * E::read(d + l, T{});
        if (l < L) sum += read_some<T, E>(a + l, L - l) * read_some<T, E>(d + l, L - l);
        dfactors[row] = total<T>(sum);
      }
    });
    return kOk;
  }
  const int64_t splits = min(split(B, int64_t{1} << 30, p.threads), L), vectors = ceil_div(C, lanes);
  Scratch<Vec<T>> partial(B * splits * vectors);
  if (!partial.ok()) return kOutOfMemory;
  on_threads(min(p.threads, B * splits), [&](int thread, int team) {
    const Share work = share(B * splits, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      Vec<T>* sum = partial.get() + item * vectors;
      std::fill(sum, sum + vectors, Vec<T>{});
      const S *a = x + item / splits * p.x.stride[0], *d = dy + item / splits * q.dy.stride[0];
      const Share run = share(L, splits, item % splits);
      for (int64_t first = run.first; first < run.last; first += kBlock) {
        const int64_t last = min(run.last, first + kBlock);
        for (int64_t j = 0; j < vectors; ++j) {
          const int64_t some = min(lanes, C - j * lanes);
          Vec<T> part{};
          for (int64_t l = first; l < last; ++l) {
            const S *u = a + l * p.x.stride[2] + j * lanes, *v = d + l * q.dy.stride[2] + j * lanes;
            part +=
                some == lanes ? E::read(u, T{}) * E::read(v, T{}) : read_some<T, E>(u, some) * read_some<T, E>(v, some);
          }
          sum[j] += part;
        }
      }
    }
  });
  for (int64_t b = 0; b < B; ++b) {
    Vec<T>* all = partial.get() + b * splits * vectors;
    for (int64_t i = vectors; i < splits * vectors; ++i) all[i % vectors] += all[i];
    std::copy_n(reinterpret_cast<const T*>(all), C, dfactors + b * C);
  }
  return kOk;
}

template <typename T>
int scale_of(const InteractionScaleForward& p) {
  with_element(p.x.dtype, [&](auto element) { scale<T, decltype(element)>(p); });
  return kOk;
}

template <typename T>
int pull_factors_of(const InteractionScaleBackward& q) {
  int status = kOk;
  with_element(q.forward.x.dtype, [&](auto element) { status = pull_factors<T, decltype(element)>(q); });
  return status;
}

}  // namespace

int interaction_reduce_forward(const InteractionReduceForward& p) {
  return p.use_double ? reduce_forward<double>(p) : reduce_forward<float>(p);
}

int interaction_reduce_backward(const InteractionReduceBackward& q) {
  return q.forward.use_double ? Backward<double>(q).run() : Backward<float>(q).run();
}

int interaction_scale_forward(const InteractionScaleForward& p) {
  return p.use_double ? scale_of<double>(p) : scale_of<float>(p);
}

int interaction_scale_backward(const InteractionScaleBackward& q) {
  return q.forward.use_double ? pull_factors_of<double>(q) : pull_factors_of<float>(q);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
