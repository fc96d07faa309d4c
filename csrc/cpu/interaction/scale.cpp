// Task interaction: the pass that scales the channels of a map, and the gradient of the factors.
#include "cpu/interaction/bands.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

bool pixels_side_by_side(const Tensor<3>& map, const InteractionShape& s) {
  return map.stride[2] == 1 && (map.stride[1] != 1 || s.pixels() > 1);
}

// y = x factors, row by row: rows of pixels with one factor, or rows of channels with one factor per channel. Rows run
// from the last to the first, because the reducing pass leaves the end of the map in the caches.
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
    for (int64_t row = work.last - 1; row >= work.first; --row) {
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

// dfactors = sum_l x dy, summed within blocks of pixels and then over the blocks. Rows run from the last to the first,
// so that the first rows are in the caches when the gradient of the reducing pass starts with them.
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
      for (int64_t row = work.last - 1; row >= work.first; --row) {
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
          const auto term = [&](int64_t l) {
            const S *u = a + l * p.x.stride[2] + j * lanes, *v = d + l * q.dy.stride[2] + j * lanes;
            if (some == lanes) return E::read(u, T{}) * E::read(v, T{});
            return read_some<T, E>(u, some) * read_some<T, E>(v, some);
          };
          Vec<T> even{}, odd{};
          int64_t l = first;
          for (; l + 1 < last; l += 2) even += term(l), odd += term(l + 1);
          if (l < last) even += term(l);
          sum[j] += even + odd;
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

int interaction_scale_forward(const InteractionScaleForward& p) {
  return p.use_double ? scale_of<double>(p) : scale_of<float>(p);
}

int interaction_scale_backward(const InteractionScaleBackward& q) {
  return q.forward.use_double ? pull_factors_of<double>(q) : pull_factors_of<float>(q);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
