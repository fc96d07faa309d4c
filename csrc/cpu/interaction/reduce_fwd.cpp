// Task interaction: the pass that computes sums over a map.
#include "cpu/interaction/bands.h"
#include "cpu/interaction/dense.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// A channel's moments are computed about the mean of its first pixels, to avoid cancellation if its mean is large.
constexpr int64_t kShiftPixels = 16;

// A band's last pixels are projected by dot products along the channels if they fill at most half a vector, as the last
// 4 of 14 x 14 do: they would cost as much as a whole vector.
template <typename T>
inline constexpr int64_t kMostLast = kLanes<T> / 2;

template <typename T>
bool apart(const Cut<T>& cut, int64_t count) {
  return count % kLanes<T> != 0 && count % kLanes<T> <= kMostLast<T> && cut.channels % kLanes<T> == 0;
}

// The memory of a thread for an item.
template <typename T>
struct Gathered {
  T *panel, *share, *last_pixels, *last_projected;
  Vec<T>*sums, *squares, *energies, *pooled;
  Mask<T>*down, *across;

  Gathered(Arena<T>& arena, const Cut<T>& cut, const Projection<T>& projection)
      : panel(arena.take(cut.channels * cut.pitch)),
        share(arena.take(cut.band + kLanes<T>)),
        last_pixels(arena.take(kMostLast<T> * cut.channels)),
        last_projected(arena.take(kMostLast<T> * projection.projected)),
        sums(arena.take_vectors(cut.channels)),
        squares(arena.take_vectors(cut.channels)),
        energies(arena.take_vectors(cut.channels)),
        pooled(arena.take_vectors(projection.rows)),
        down(reinterpret_cast<Mask<T>*>(arena.take_vectors(ceil_div(cut.band, kLanes<T>)))),
        across(reinterpret_cast<Mask<T>*>(arena.take_vectors(ceil_div(cut.band, kLanes<T>)))) {}
};

// The sums of an item, to be added over the items of an image: 2 C moments about the shift, P pooled values, energy,
// and the largest logit and the sum of exponentials relative to it. The C shifts are those of the image.
template <typename T>
struct Sums {
  int64_t channels, projected;

  int64_t size() const { return 3 * channels + projected + 3; }
  T* sum(T* item) const { return item; }
  T* square(T* item) const { return item + channels; }
  T* pooled(T* item) const { return item + 2 * channels; }
  T* energy(T* item) const { return pooled(item) + projected; }
  T* softmax(T* item) const { return energy(item) + 1; }
  T* shift(T* item) const { return softmax(item) + 2; }
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
      shift[c + i] = sum - sum == 0 ? sum : 0;  // inf or NaN cannot be a shift
    }
  }
}

// Adds the moments of a band, without the padding after its last pixel.
template <typename T>
void add_moments(const Cut<T>& cut, int64_t count, const T* shifts, const Gathered<T>& g) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = count / lanes;
  const Mask<T> rest = lanes_within<T>(whole * lanes, 0, count);
  for (int64_t c = 0; c < cut.channels; ++c) {
    const T* row = g.panel + c * cut.pitch + cut.start;
    const Vec<T> shift = splat(shifts[c]);
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

// Adds the absolute differences between each pixel of a band and its lower and right neighbours.
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

// Adds the projections of the pixels after the last whole vector of a band, all of the same weight.
template <typename T>
void add_last_pooled(const Cut<T>& cut, const Projection<T>& projection, int64_t count, const Gathered<T>& g,
                     uint16_t* signs) {
  const int64_t whole = count / kLanes<T>, some = count % kLanes<T>, P = projection.projected;
  pack<T>(g.panel + cut.start + whole * kLanes<T>, dtype_of<T>, 1, cut.pitch, some, cut.channels, g.last_pixels,
          cut.channels);
  linear<T>(g.last_pixels, some, cut.channels, projection.weight, projection.pitch, projection.bias, P, {0, P},
            g.last_projected);
  for (int64_t r = 0; r < projection.rows; ++r) {
    T sum = 0;
    uint16_t bits = 0;
    for (int64_t i = 0; r < P && i < some; ++i) {
      const T z = g.last_projected[i * P + r];
      sum += z < 0 ? 0 : z;  // NaN stays
      bits |= static_cast<uint16_t>(!(z <= 0)) << i;
    }
    g.pooled[r][0] += sum;
    if (signs) signs[r * ceil_div(cut.pixels, kLanes<T>) + whole] = bits;
  }
}

// Adds the projections of a band, each pixel weighted by its share. With attention the shares are exponentials relative
// to the largest logit so far; when a larger one appears, the earlier sums are scaled down.
template <typename T>
void add_pooled(const Cut<T>& cut, const Projection<T>& projection, int64_t count, bool attend, const Gathered<T>& g,
                T* softmax, uint16_t* signs, Ahead ahead) {
  constexpr int lanes = kLanes<T>;
  const bool last_apart = !attend && apart(cut, count);
  const int64_t vectors = last_apart ? count / lanes : ceil_div(count, lanes);
  const int64_t signs_pitch = ceil_div(cut.pixels, lanes);
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
  if (last_apart) add_last_pooled<T>(cut, projection, count, g, signs);
  const int64_t lines = ahead.share(max(1, projection.rows / kRows * ceil_div(vectors, kColumns)));
  for (int64_t r = 0; r < projection.rows; r += kRows) {
    by_columns(vectors, [&](auto columns, int64_t j) {
      ahead.step(lines);
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
        if (signs) {
          for (int k = 0; k < columns(); ++k) signs[(r + i) * signs_pitch + j + k] = bits_of<T>(~(z[i][k] <= 0));
        }
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
  find_shift<T>(p, cut, b, sums.shift(out));
  for (int64_t first = cut.first(item); first < cut.last(item); first += cut.band) {
    const int64_t count = min(cut.band, cut.last(item) - first);
    cut.pack_band(p.x, b, first, count, g.panel, !p.weight);
    add_moments<T>(cut, count, sums.shift(out), g);
    if (p.energy) add_energy<T>(cut, first, count, g);
    if (p.weight) {
      uint16_t* signs = p.signs ? p.signs + signs_at<T>(cut, projection, b, first) : nullptr;
      add_pooled<T>(cut, projection, count, static_cast<bool>(p.attn), g, softmax, signs, cut.behind(p.x, item, first));
    }
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

// Adds the items of image b, in a fixed order, and writes its results.
template <typename T>
void finish(const InteractionReduceForward& p, const Cut<T>& cut, const Sums<T>& sums, int64_t b, T* items) {
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
  const T* shift = sums.shift(all);
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
      T* const out = items.get() + item * sums.size();
      gather<T>(p, cut, projection, item, g, sums, out);
      if (cut.splits == 1) finish<T>(p, cut, sums, item, out);
    }
  });
  for (int64_t b = 0; cut.splits > 1 && b < p.shape.batch; ++b) {
    finish<T>(p, cut, sums, b, items.get() + b * cut.splits * sums.size());
  }
  return kOk;
}

}  // namespace

int interaction_reduce_forward(const InteractionReduceForward& p) {
  return p.use_double ? reduce_forward<double>(p) : reduce_forward<float>(p);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
