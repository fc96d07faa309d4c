// Task interaction: the gradient of the reducing pass, together with that of the scaling pass.
#include "cpu/interaction/bands.h"
#include "cpu/interaction/masked_row_sum.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// With S_pl = share_l if z_pl > 0, else 0:
//
//   dweight = dpooled S x^T      dbias = dpooled sum_l S      dx = (dpooled weight)^T S
//
// Without attention all shares are 1 / L; this factor is moved to dpooled, and S consists of zeros and ones. With
// attention and t_l = share_l (sum_p dpooled_p (z_pl - pooled_p)): dattn = t x^T and dx += attn t, so t is one more row
// of S and attn one more row of the weight, with the factor 1.
//
// Here a panel has one row of channels per pixel, so that both products run along channels.
template <typename T>
struct Pulled {
  // must be zero initially
  T* s;                       // S, one row of pixels per projected channel
  Place<T>*weights, *pixels;  // S for look-ups: the places of rows of weight, and of x
  T* dweight;                 // and dattn
  Vec<T>* dbias;
  T* zeros;                          // one row
  T *mean, *slope, *level, *factor;  // per channel of an image
  // need not be initialised
  T *number, *weight;              // the factors of the rows of S; the rows of weight and attn times these factors
  T *x, *y;                        // of a band: x with its halo; first dy, then dx
  T *x_channels, *share, *dshare;  // to recompute the projection: one row of pixels per channel
  Place<T>* place;                 // places of a band's pixels in x
};

template <typename T>
struct Backward {
  const InteractionReduceBackward& q;
  const InteractionReduceForward& p;
  Cut<T> cut;
  Projection<T> projection;
  int64_t depth, rows, wide, length, pitch;
  bool pooled, weights, by_signs, looked_up;

  explicit Backward(const InteractionReduceBackward& params)
      : q(params),
        p(params.forward),
        cut(p, q.denergy != nullptr, kBackwardBand),
        projection(p),
        depth(projection.projected + (p.attn ? 1 : 0)),
        rows(max(round_up(depth, kChoiceRows), projection.rows)),
        wide(pitch_of<T>(cut.channels)),
        length(round_up(cut.band + kChoiceRows, kLanes<T>)),
        pooled(q.dpooled != nullptr),
        weights(pooled && (q.dweight || q.dbias || q.dattn)),
        by_signs(pooled && p.signs),
        looked_up(by_signs && kLooksUp) {
    pitch = looked_up ? 3 * length : length;  // a row holds numbers and places
  }

  // `zeros` receives the number of elements that must be zero initially.
  Pulled<T> take(Arena<T>& arena, int64_t* zeros = nullptr) const {
    Pulled<T> g;
    g.s = arena.take(pooled ? rows * pitch : 0);
    g.weights = looked_up ? reinterpret_cast<Place<T>*>(g.s) + length : nullptr;
    g.pixels = looked_up ? g.weights + length : nullptr;
    g.dweight = arena.take(weights ? rows * wide : 0);
    g.dbias = arena.take_vectors(rows);
    for (T** row : {&g.zeros, &g.mean, &g.slope, &g.level, &g.factor}) *row = arena.take(wide);
    if (zeros) *zeros = arena.used();
    g.number = arena.take(rows);
    g.weight = arena.take(pooled ? depth * wide : 0);
    g.x = arena.take((2 * cut.halo + cut.band) * wide) + cut.halo * wide;
    g.y = arena.take(round_up(cut.band, kChoiceRows) * wide);
    g.x_channels = arena.take(pooled && !by_signs ? cut.channels * cut.pitch : 0);
    g.share = arena.take(cut.band + kLanes<T>);
    g.dshare = arena.take(cut.band + kLanes<T>);
    g.place = reinterpret_cast<Place<T>*>(arena.take(looked_up ? length : 0));
    return g;
  }

  // Computes the values that are the same for all pixels of an image.
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
    if (!pooled) return;
    const T* dpooled = static_cast<const T*>(q.dpooled) + b * P;
    for (int64_t r = 0; r < depth; ++r) {
      const T number = r == P ? 1 : by_signs ? dpooled[r] / pixels : dpooled[r];
      const T* row = r == P ? projection.attn : projection.weight + r * projection.pitch;
      for (int64_t c = 0; c < C; c += kLanes<T>) store(g.weight + r * wide + c, number * load(row + c));
      g.number[r] = number;
    }
    std::fill(g.number + depth, g.number + rows, T{0});
  }

  // Computes S from the signs that the forward pass saved; adds to dbias.
  void choose_by_signs(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t signs_pitch = ceil_div(cut.pixels, lanes);
    const uint16_t* signs = p.signs + signs_at<T>(cut, projection, b, first);
    const int64_t whole = count / lanes * lanes;
    const uint16_t rest = static_cast<uint16_t>((1u << (count - whole)) - 1);
    for (int64_t r = 0; r < projection.projected; ++r) {
      const Place<T> weight = static_cast<Place<T>>(g.weight - g.zeros + r * wide);
      const uint16_t* row = signs + r * signs_pitch;
      T* s = g.s + r * pitch;
      Place<T>*pixels = g.pixels + r * pitch, *weights = g.weights + r * pitch;
      Vec<T> sum{};
      const auto choose = [&](int64_t l, uint16_t bits) {
        const Mask<T> mask = mask_of<T>(bits);
        const Vec<T> ones = keep<T>(splat(T{1}), mask);
        store(s + l, ones);
        if (kLooksUp) store_mask<T>(weights + l, mask & weight);
        if (kLooksUp && is_third(r)) store_mask<T>(pixels + l, mask & load_mask<T>(g.place + l));
        sum += ones;
      };
      for (int64_t l = 0; l < whole; l += lanes) choose(l, row[l / lanes]);
      if (whole < count) choose(whole, row[whole / lanes] & rest);
      g.dbias[r] += g.number[r] * sum;
    }
  }

  // Computes the share of each pixel of a band in the pooled values; 0 after the last pixel.
  void find_share(int64_t b, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t vectors = ceil_div(count, lanes);
    if (!p.attn) {
      for (int64_t l = 0; l < vectors * lanes; ++l) g.share[l] = l < count ? 1 / static_cast<T>(cut.pixels) : 0;
      return;
    }
    const T* softmax = static_cast<const T*>(p.softmax) + 2 * b;
    const T about = std::isinf(softmax[0]) && softmax[0] < 0 ? 0 : softmax[0];
    attention<T>(projection.attn, g.x_channels, cut.pitch, cut.channels, vectors, g.share);
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> e = exp2((load(g.share + j * lanes) - about) * kLog2E<T>) / softmax[1];
      store(g.share + j * lanes, keep<T>(e, lanes_within<T>(j * lanes, 0, count)));
    }
  }

  // Computes S by recomputing the projection; adds to dbias.
  void choose_by_projection(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t vectors = ceil_div(count, lanes), P = projection.projected;
    const T* x = g.x_channels;
    pack<T>(at(p.x, b * p.x.stride[0] + first * p.x.stride[2]), p.x.dtype, p.x.stride[1], p.x.stride[2], cut.channels,
            count, g.x_channels, cut.pitch);
    find_share(b, count, g);
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
            for (int i = 0; i < kRows; ++i) sum += relu<T>(z[i][k]) * g.number[r + i];
            store(g.dshare + (j + k) * lanes, load(g.dshare + (j + k) * lanes) + sum);
          }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          Vec<T> sum{};
          for (int k = 0; k < columns(); ++k) {
            const Vec<T> s = z[i][k] <= 0 ? Vec<T>{} : load(g.share + (j + k) * lanes);
            store(g.s + (r + i) * pitch + (j + k) * lanes, s);
            sum += s;
          }
          g.dbias[r + i] += g.number[r + i] * sum;
        }
      });
    }
    if (!p.attn) return;
    T mean = 0;
    for (int64_t r = 0; r < P; ++r) mean += g.number[r] * static_cast<const T*>(p.pooled)[b * P + r];
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t l = j * lanes;
      store(g.s + P * pitch + l, load(g.share + l) * (load(g.dshare + l) - mean));
    }
  }

  void pull_weights(int64_t count, Ahead ahead, const Pulled<T>& g) const {
    const Choice<T, true> by_row{g.s, g.pixels, pitch};
    const Rows<T> x{g.x, g.zeros, wide, ceil_div(cut.channels, kLanes<T>)};
    sum_chosen(by_row, depth, count, x, ahead, [&](int64_t r, int64_t j, Vec<T> sum) {
      T* here = g.dweight + r * wide + j * kLanes<T>;
      store(here, load(here) + sum * g.number[r]);
    });
  }

  // The derivative of the absolute differences between pixel (h, w) and its neighbours: a sum of signs.
  MTLKIT_INLINE Vec<T> pull_energy(const T* x, int64_t pitch, int64_t h, int64_t w) const {
    const Vec<T> v = load(x);
    Mask<T> signs{};
    const auto add = [&](bool inside, int64_t step) {
      const Vec<T> other = load(x + step);
      if (inside) signs += (v < other) - (v > other);
    };
    add(h > 0, -cut.width * pitch);
    add(h + 1 < p.shape.height, cut.width * pitch);
    add(w > 0, -pitch);
    add(w + 1 < cut.width, pitch);
    return __builtin_convertvector(signs, Vec<T>);
  }

  // Computes the gradient of a band of x, except the part through the projection. It overwrites dy in its panel.
  template <bool with_dy, bool with_energy>
  void pull_moments(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    const int64_t C = cut.channels, width = cut.width, pitch = wide;
    const T energy = with_energy ? static_cast<const T*>(q.denergy)[b] / static_cast<T>(C * cut.pixels) : 0;
    for (int64_t c = 0; c < C; c += kLanes<T>) {
      const Vec<T> mean = load(g.mean + c), slope = load(g.slope + c), level = load(g.level + c);
      const Vec<T> factor = load(g.factor + c);
      const T* x = g.x + c;
      T* y = g.y + c;
      int64_t h = first / width, w = first % width;
      for (int64_t l = 0; l < count; ++l, x += pitch, y += pitch) {
        Vec<T> dx = (load(x) - mean) * slope + level;
        if (with_energy) {
          dx += pull_energy(x, pitch, h, w) * energy;
          if (++w == width) ++h, w = 0;
        }
        if (with_dy) dx += load(y) * factor;
        store(y, dx);
      }
    }
  }

  // Writes the gradient of a band of x.
  void pull_map(int64_t b, int64_t first, int64_t count, Ahead ahead, const Pulled<T>& g) const {
    const int64_t C = cut.channels;
    if (q.dy) {
      pack<T>(at(q.dy, b * q.dy.stride[0] + first * q.dy.stride[2]), q.dy.dtype, q.dy.stride[2], q.dy.stride[1], count,
              C, g.y, wide, !pooled);
      q.denergy ? pull_moments<true, true>(b, first, count, g) : pull_moments<true, false>(b, first, count, g);
    } else {
      q.denergy ? pull_moments<false, true>(b, first, count, g) : pull_moments<false, false>(b, first, count, g);
    }
    if (pooled) {
      const Choice<T, false> by_column{g.s, g.weights, pitch};
      const Rows<T> weight{g.weight, g.zeros, wide, ceil_div(C, kLanes<T>)};
      sum_chosen(by_column, count, depth, weight, ahead, [&](int64_t l, int64_t j, Vec<T> sum) {
        T* here = g.y + l * wide + j * kLanes<T>;
        store(here, load(here) + sum);
      });
    }
    unpack<T>(at(q.dx, b * q.dx.stride[0] + first * q.dx.stride[2]), q.dx.dtype, q.dx.stride[2], q.dx.stride[1], count,
              C, g.y, wide);
  }

  void pull(int64_t item, const Pulled<T>& g) const {
    const int64_t b = cut.image(item);
    load_image(b, g);
    for (int64_t first = cut.first(item); first < cut.last(item); first += cut.band) {
      const int64_t count = min(cut.band, cut.last(item) - first);
      cut.each_run(first, count, [&](int64_t pixel, int64_t place, int64_t some) {
        pack<T>(at(p.x, b * p.x.stride[0] + pixel * p.x.stride[2]), p.x.dtype, p.x.stride[2], p.x.stride[1], some,
                cut.channels, g.x + place * wide, wide, !pooled);
      });
      if (pooled) {
        by_signs ? choose_by_signs(b, first, count, g) : choose_by_projection(b, first, count, g);
        if (weights) pull_weights(count, q.dy ? cut.band_of(q.dy, item, first) : Ahead(), g);
      }
      if (q.dx) pull_map(b, first, count, cut.behind(p.x, item, first), g);
    }
  }

  int run() const {
    Arena<T> counted;
    int64_t zeros;
    take(counted, &zeros);
    const int64_t size = counted.used();
    Scratch<T> scratch(cut.threads * size);
    if (!projection.ok() || !scratch.ok()) return kOutOfMemory;
    on_threads(cut.threads, [&](int thread, int team) {
      for (int t = thread; t < cut.threads; t += team) std::memset(scratch.get() + t * size, 0, zeros * sizeof(T));
      Arena<T> arena(scratch.get() + thread * size);
      const Pulled<T> g = take(arena);
      for (int64_t l = 0; looked_up && l < cut.band; ++l) {
        g.place[l] = static_cast<Place<T>>(g.x - g.zeros + l * wide);
      }
      const Share work = share(cut.items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) pull(item, g);
    });
    if (weights) write_weights(scratch.get(), size);
    return kOk;
  }

  // Adds the sums of the threads, in a fixed order. Threads divide the rows.
  void write_weights(T* memory, int64_t size) const {
    const int64_t C = cut.channels, P = projection.projected;
    on_threads(cut.threads, [&](int thread, int team) {
      const Share mine = share(depth, team, thread);
      const int64_t last = min(P, mine.last);  // the row after P is dattn
      Arena<T> arena(memory);
      const Pulled<T> all = take(arena);
      for (int other = 1; other < cut.threads; ++other) {
        Arena<T> other_arena(memory + other * size);
        const Pulled<T> theirs = take(other_arena);
        for (int64_t i = mine.first * wide; i < mine.last * wide; ++i) all.dweight[i] += theirs.dweight[i];
        for (int64_t r = mine.first; r < last; ++r) all.dbias[r] += theirs.dbias[r];
      }
      for (int64_t r = mine.first; r < last; ++r) {
        if (q.dweight) std::copy_n(all.dweight + r * wide, C, static_cast<T*>(q.dweight) + r * C);
        if (q.dbias) static_cast<T*>(q.dbias)[r] = total<T>(all.dbias[r]);
      }
      if (q.dattn && mine.last > P) std::copy_n(all.dweight + P * wide, C, static_cast<T*>(q.dattn));
    });
  }
};

}  // namespace

int interaction_reduce_backward(const InteractionReduceBackward& q) {
  return q.forward.use_double ? Backward<double>(q).run() : Backward<float>(q).run();
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
