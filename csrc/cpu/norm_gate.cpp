// LayerNorm over the channels, times SiLU(z) if a gate is given (formula: common/norm_gate.h).
//
// As many rows as a vector has lanes are processed together, with one transposing sum and one vector of square roots
// for all of them. A row is read once into a buffer of whole vectors, which handles dtype and any number of channels;
// lanes after the last channel are 0. Mean, variance about the mean, and result are computed from the buffer. The
// backward pass recomputes mean and variance: that costs two passes over a row in the cache instead of storing them.
#include "cpu/norm_gate.h"

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

MTLKIT_INLINE FloatVec sqrt(FloatVec x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

MTLKIT_INLINE DoubleVec sqrt(DoubleVec x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

template <typename T>
void load_row(const Tensor<2>& rows, int64_t row, int64_t channels, Vec<T>* out) {
  constexpr int lanes = kLanes<T>;
  const int64_t start = row * rows.stride[0], whole = channels / lanes, rest = channels % lanes;
  load_tile<T>(at(rows, start), rows.dtype, 1, lanes, lanes, whole, out);
  if (rest) load_tile<T>(at(rows, start + whole * lanes), rows.dtype, 1, lanes, rest, 1, out + whole);
}

template <typename T>
void store_row(const Tensor<2>& rows, int64_t row, int64_t channels, const Vec<T>* v) {
  constexpr int lanes = kLanes<T>;
  const int64_t start = row * rows.stride[0], whole = channels / lanes, rest = channels % lanes;
  store_tile<T>(at(rows, start), rows.dtype, 1, lanes, lanes, whole, v);
  if (rest) store_tile<T>(at(rows, start + whole * lanes), rows.dtype, 1, lanes, rest, 1, v + whole);
}

// Loads a parameter as vectors; `missing` if it is absent.
template <typename T>
void load_parameter(const Tensor<1>& parameter, T missing, int64_t channels, Vec<T>* out) {
  constexpr int lanes = kLanes<T>;
  for (int64_t d = 0; d < channels; d += lanes, ++out) {
    *out = splat(missing);
    if (!parameter) continue;
    load_tile<T>(at(parameter, d * parameter.stride[0]), parameter.dtype, parameter.stride[0], 0,
                 min(lanes, channels - d), 1, out);
  }
}

// The sum of f(0), ..., f(count - 1), in two chains to hide half of the latency of additions.
template <typename T, typename F>
MTLKIT_INLINE Vec<T> sum_of(int64_t count, F f) {
  Vec<T> even{}, odd{};
  int64_t i = 0;
  for (; i + 1 < count; i += 2) even += f(i), odd += f(i + 1);
  if (i < count) even += f(i);
  return even + odd;
}

// The values that a call computes once, and the buffers of one thread.
template <typename T>
struct Norm {
  const NormGateForward& p;
  int64_t vectors, tile_rows, tiles;
  int threads;

  explicit Norm(const NormGateForward& params)
      : p(params),
        vectors(ceil_div(p.shape.channels, kLanes<T>)),
        tile_rows(max(1, min(kLanes<T>, ceil_div(p.shape.rows, p.threads)))),
        tiles(ceil_div(p.shape.rows, tile_rows)),
        threads(static_cast<int>(max(1, min(p.threads, tiles)))) {}

  // Fills x with the normalised rows from `first` on, before weight and bias, and returns 1 / sqrt(variance + eps) of
  // each row in its lane.
  Vec<T> normalise(int64_t first, int64_t rows, Vec<T>* x) const {
    const T share = 1 / static_cast<T>(p.shape.channels);
    const int64_t rest = p.shape.channels % kLanes<T>;
    Vec<T> live{};
    for (int64_t c = 0; c < rest; ++c) live[c] = 1;
    Vec<T> sums[kLanes<T>] = {}, squares[kLanes<T>] = {}, drifts[kLanes<T>] = {};
    for (int64_t r = 0; r < rows; ++r) {
      Vec<T>* row = x + r * vectors;
      load_row<T>(p.x, first + r, p.shape.channels, row);
      sums[r] = sum_of<T>(vectors, [&](int64_t i) { return row[i]; });
    }
    const Vec<T> mean = sum_lanes<T>(sums) * share;
    for (int64_t r = 0; r < rows; ++r) {
      Vec<T>* row = x + r * vectors;
      const Vec<T> m = splat<T>(mean[r]);
      for (int64_t i = 0; i < vectors; ++i) row[i] -= m;
      if (rest) row[vectors - 1] *= live;
      squares[r] = sum_of<T>(vectors, [&](int64_t i) { return row[i] * row[i]; });
      drifts[r] = sum_of<T>(vectors, [&](int64_t i) { return row[i]; });
    }
    // The remaining mean is the rounding error of the first one; it matters if the mean is large compared with the
    // variance.
    const Vec<T> drift = sum_lanes<T>(drifts) * share;
    const Vec<T> variance = sum_lanes<T>(squares) * share - drift * drift;
    const Vec<T> rstd = 1 / sqrt((variance > 0 ? variance : Vec<T>{}) + static_cast<T>(p.eps));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = r * vectors; i < (r + 1) * vectors; ++i) x[i] = (x[i] - drift[r]) * rstd[r];
    }
    return rstd;
  }
};

template <typename T>
int forward(const NormGateForward& p) {
  const Norm<T> norm(p);
  const int64_t vectors = norm.vectors, size = (norm.tile_rows + 1) * vectors;
  Scratch<Vec<T>> parameters(2 * vectors), scratch(norm.threads * size);
  if (!parameters.ok() || !scratch.ok()) return kOutOfMemory;
  Vec<T>*const weight = parameters.get(), *const bias = weight + vectors;
  load_parameter<T>(p.weight, 1, p.shape.channels, weight);
  load_parameter<T>(p.bias, 0, p.shape.channels, bias);

  on_threads(norm.threads, [&](int thread, int team) {
    Vec<T>*const z = scratch.get() + thread * size, *const x = z + vectors;
    const Share work = share(norm.tiles, team, thread);
    for (int64_t tile = work.first; tile < work.last; ++tile) {
      const int64_t first = tile * norm.tile_rows, rows = min(norm.tile_rows, p.shape.rows - first);
      norm.normalise(first, rows, x);
      for (int64_t r = 0; r < rows; ++r) {
        Vec<T>* row = x + r * vectors;
        if (p.z) {
          load_row<T>(p.z, first + r, p.shape.channels, z);
          for (int64_t i = 0; i < vectors; ++i) row[i] = (row[i] * weight[i] + bias[i]) * silu(z[i]);
        } else {
          for (int64_t i = 0; i < vectors; ++i) row[i] = row[i] * weight[i] + bias[i];
        }
        store_row<T>(p.out, first + r, p.shape.channels, row);
      }
    }
  });
  return kOk;
}

// ---- Backward -------------------------------------------------------------------------------------------------------

//   dz = dout n SiLU'(z)       dn = dout SiLU(z)       dweight += dn x       dbias += dn, with x the normalised row
//   g = dn weight              dx = rstd (g - mean(g) - x mean(g x))
template <typename T>
int backward(const NormGateBackward& q) {
  const NormGateForward& p = q.forward;
  const Norm<T> norm(p);
  const int64_t vectors = norm.vectors, size = (2 * norm.tile_rows + 2) * vectors;
  Scratch<Vec<T>> parameters(2 * vectors), scratch(norm.threads * size), totals(norm.threads * 2 * vectors);
  if (!parameters.ok() || !scratch.ok() || !totals.ok()) return kOutOfMemory;
  Vec<T>*const weight = parameters.get(), *const bias = weight + vectors;
  load_parameter<T>(p.weight, 1, p.shape.channels, weight);
  load_parameter<T>(p.bias, 0, p.shape.channels, bias);
  std::memset(totals.get(), 0, norm.threads * 2 * vectors * sizeof(Vec<T>));
  const T per_channel = 1 / static_cast<T>(p.shape.channels);

  on_threads(norm.threads, [&](int thread, int team) {
    Vec<T>*const z = scratch.get() + thread * size, *const out = z + vectors;
    Vec<T>*const x = out + vectors, *const dn = x + norm.tile_rows * vectors;
    Vec<T>*const dweight = totals.get() + thread * 2 * vectors, *const dbias = dweight + vectors;
    const Share work = share(norm.tiles, team, thread);
    for (int64_t tile = work.first; tile < work.last; ++tile) {
      const int64_t first = tile * norm.tile_rows, rows = min(norm.tile_rows, p.shape.rows - first);
      const Vec<T> rstd = norm.normalise(first, rows, x);
      Vec<T> sums[kLanes<T>] = {}, products[kLanes<T>] = {};
      for (int64_t r = 0; r < rows; ++r) {
        Vec<T>*const x_row = x + r * vectors, *const dn_row = dn + r * vectors;
        load_row<T>(q.dout, first + r, p.shape.channels, dn_row);
        if (p.z) {
          load_row<T>(p.z, first + r, p.shape.channels, z);
          for (int64_t i = 0; i < vectors; ++i) {
            const Silu<Vec<T>> gate = silu_and_slope(z[i]);
            out[i] = dn_row[i] * (x_row[i] * weight[i] + bias[i]) * gate.slope;
            dn_row[i] *= gate.value;
          }
          store_row<T>(q.dz, first + r, p.shape.channels, out);
        }
        sums[r] = sum_of<T>(vectors, [&](int64_t i) { return dn_row[i] * weight[i]; });
        products[r] = sum_of<T>(vectors, [&](int64_t i) { return dn_row[i] * weight[i] * x_row[i]; });
      }
      for (int64_t i = 0; i < vectors; ++i) {
        Vec<T> sum{}, product{};
        for (int64_t r = 0; r < rows; ++r) {
          sum += dn[r * vectors + i];
          product += dn[r * vectors + i] * x[r * vectors + i];
        }
        dbias[i] += sum;
        dweight[i] += product;
      }
      const Vec<T> mean = sum_lanes<T>(sums) * per_channel, slope = sum_lanes<T>(products) * per_channel;
      for (int64_t r = 0; r < rows; ++r) {
        const Vec<T>*const x_row = x + r * vectors, *const dn_row = dn + r * vectors;
        for (int64_t i = 0; i < vectors; ++i) {
          out[i] = (dn_row[i] * weight[i] - mean[r] - x_row[i] * slope[r]) * rstd[r];
        }
        store_row<T>(q.dx, first + r, p.shape.channels, out);
      }
    }
  });

  for (int64_t thread = 1; thread < norm.threads; ++thread) {
    for (int64_t i = 0; i < 2 * vectors; ++i) totals.get()[i] += totals.get()[thread * 2 * vectors + i];
  }
  if (q.dweight) std::memcpy(q.dweight, totals.get(), p.shape.channels * sizeof(T));
  if (q.dbias) std::memcpy(q.dbias, totals.get() + vectors, p.shape.channels * sizeof(T));
  return kOk;
}

}  // namespace

int norm_gate_forward(const NormGateForward& p) { return p.use_double ? forward<double>(p) : forward<float>(p); }

int norm_gate_backward(const NormGateBackward& p) {
  return p.forward.use_double ? backward<double>(p) : backward<float>(p);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
