// Task interaction: the gradient of the gathering pass, and with it that of the scaling pass.
#include "interaction.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

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
    pack<T>(projection.weight, dtype_of<T>, 1, projection.pitch, cut.channels, projection.projected, transposed.get(),
            weight_pitch);
    if (!p.attn) return;
    for (int64_t c = 0; c < cut.channels; ++c) {
      transposed.get()[c * weight_pitch + projection.projected] = projection.attn[c];
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

  // Fills M from the signs that the forward pass has left, and adds to dbias.
  void pull_signs(int64_t b, int64_t first, int64_t count, const Pulled<T>& g) const {
    constexpr int lanes = kLanes<T>;
    const int64_t vectors = ceil_div(count, lanes), signs_pitch = ceil_div(cut.pixels, lanes);
    const uint16_t* signs = p.signs + signs_at<T>(cut, projection, b, first);
    for (int64_t r = 0; r < projection.rows; ++r) {
      const T dpooled = g.dpooled[r];
      Vec<T> sum{};
      for (int64_t j = 0; j < vectors; ++j) {
        const Vec<T> m = keep<T>(dpooled * load(g.share + j * lanes), mask_of<T>(signs[r * signs_pitch + j]));
        store(g.m + r * cut.pitch + j * lanes, m);
        sum += m;
      }
      g.dbias[r] += sum;
    }
  }

  // The same, with the projection worked out anew.
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
        Vec<T> sum[kRows][columns()] = {};
        multiply<T, columns()>(g.m + r * cut.pitch, cut.pitch, g.x_pixels + j * lanes, wide, count, sum);
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          for (int k = 0; k < columns(); ++k) {
            T* here = target + i * wide + k * lanes;
            store(here, load(here) + sum[i][k]);
          }
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
              count, g.y, cut.pitch, true);
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
      cut.pack_band(p.x, b, first, count, g.x, true);
      if (pooled) {
        find_share(b, count, g);
        p.signs ? pull_signs(b, first, count, g) : pull_projection(b, count, g);
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

}  // namespace

int interaction_reduce_backward(const InteractionReduceBackward& q) {
  return q.forward.use_double ? Backward<double>(q).run() : Backward<float>(q).run();
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
