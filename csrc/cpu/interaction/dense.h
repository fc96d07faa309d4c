// Small dense layers on a few rows, and their gradients. All matrices are row-major and contiguous.
//
// A block of 4 x 4 vectors is summed in registers; rows beyond the last repeat the last one and are not written. The
// order of each element's sum depends only on the depth.
#pragma once

#include "cpu/element.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {

inline constexpr int kSide = 4;

template <typename T>
using ElementOf = Element<dtype_of<T>>;

// Loads a vector of which `left` elements exist; the others are 0.
template <typename T>
MTLKIT_INLINE Vec<T> load_left(const T* p, int64_t left) {
  return left >= kLanes<T> ? load(p) : left > 0 ? read_some<T, ElementOf<T>>(p, left) : Vec<T>{};
}

template <typename T>
MTLKIT_INLINE void store_left(T* p, Vec<T> v, int64_t left) {
  if (left >= kLanes<T>) {
    store(p, v);
  } else if (left > 0) {
    write_some<T, ElementOf<T>>(p, v, left);
  }
}

// y[i] = f(y[i]) for `count` numbers, a vector at a time.
template <typename T, typename F>
MTLKIT_INLINE void transform(T* y, int64_t count, F f) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store_left(y + i, f(load_left(y + i, count - i)), count - i);
}

// y[b][r] = bias[r] + weight[r] . x[b] for the rows of a share: x (images, depth), weight (rows, depth),
// y (images, rows). Bias may be null. Rows of the weight are `pitch` elements apart.
template <typename T>
void linear(const T* x, int64_t images, int64_t depth, const T* weight, int64_t pitch, const T* bias, int64_t rows,
            Share share, T* y) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = depth / lanes * lanes;
  for (int64_t r = share.first; r < share.last; r += kSide) {
    for (int64_t b = 0; b < images; b += kSide) {
      const T *w[kSide], *v[kSide];
#pragma GCC unroll 4
      for (int i = 0; i < kSide; ++i) {
        w[i] = weight + min(r + i, share.last - 1) * pitch;
        v[i] = x + min(b + i, images - 1) * depth;
      }
      Vec<T> sum[kSide * kSide] = {};
      const auto add = [&](auto read, int64_t k) {
        Vec<T> column[kSide];
#pragma GCC unroll 4
        for (int i = 0; i < kSide; ++i) column[i] = read(w[i] + k);
#pragma GCC unroll 4
        for (int i = 0; i < kSide; ++i) {
          const Vec<T> row = read(v[i] + k);
#pragma GCC unroll 4
          for (int j = 0; j < kSide; ++j) sum[i * kSide + j] += row * column[j];
        }
      };
      for (int64_t k = 0; k < whole; k += lanes) add([](const T* p) { return load(p); }, k);
      if (whole < depth) add([&](const T* p) { return read_some<T, ElementOf<T>>(p, depth - whole); }, whole);
      T dots[kSide * kSide];
      for (int i = 0; i < kSide * kSide; i += lanes) store(dots + i, sum_lanes<T>(sum + i));
      for (int i = 0; i < min(kSide, images - b); ++i) {
        for (int j = 0; j < min(kSide, share.last - r); ++j) {
          y[(b + i) * rows + r + j] = dots[i * kSide + j] + (bias ? bias[r + j] : 0);
        }
      }
    }
  }
}

// The same, of a contiguous weight.
template <typename T>
void linear(const T* x, int64_t images, int64_t depth, const T* weight, const T* bias, int64_t rows, Share share,
            T* y) {
  linear<T>(x, images, depth, weight, depth, bias, rows, share, y);
}

// out[m][n] (+)= sum_k a(m, k) b[k][n] for m in a share of rows and n in a share of columns: a(m, k) is at a + m *
// row_stride + k * depth_stride; b and out have `width` columns.
template <typename T>
void product(const T* a, int64_t row_stride, int64_t depth_stride, int64_t depth, const T* b, int64_t width, Share rows,
             Share columns, bool add, T* out) {
  constexpr int lanes = kLanes<T>;
  for (int64_t n = columns.first; n < columns.last; n += kSide * lanes) {
    for (int64_t m = rows.first; m < rows.last; m += kSide) {
      const T* row[kSide];
#pragma GCC unroll 4
      for (int i = 0; i < kSide; ++i) row[i] = a + min(m + i, rows.last - 1) * row_stride;
      Vec<T> sum[kSide][kSide] = {};
      const auto each = [&](auto read) {
        for (int64_t k = 0; k < depth; ++k) {
          Vec<T> v[kSide];
#pragma GCC unroll 4
          for (int j = 0; j < kSide; ++j) v[j] = read(b + k * width + n + j * lanes, columns.last - n - j * lanes);
#pragma GCC unroll 4
          for (int i = 0; i < kSide; ++i) {
            const Vec<T> factor = splat(row[i][k * depth_stride]);
#pragma GCC unroll 4
            for (int j = 0; j < kSide; ++j) sum[i][j] += factor * v[j];
          }
        }
      };
      if (n + kSide * lanes <= columns.last) {
        each([](const T* p, int64_t) { return load(p); });
      } else {
        each([](const T* p, int64_t left) { return load_left(p, left); });
      }
      for (int i = 0; i < min(kSide, rows.last - m); ++i) {
        for (int j = 0; j < kSide; ++j) {
          T* target = out + (m + i) * width + n + j * lanes;
          const int64_t left = columns.last - n - j * lanes;
          store_left(target, add ? load_left(target, left) + sum[i][j] : sum[i][j], left);
        }
      }
    }
  }
}

// A thread's share of the gradients of y = weight x + bias, given dy (images, rows): columns of dx (images, depth), to
// which it adds if `add`, and rows of dweight and dbias. All three may be null.
template <typename T>
void pull_linear(const T* dy, const T* x, const T* weight, int64_t images, int64_t rows, int64_t depth, int thread,
                 int team, bool add, T* dx, T* dweight, T* dbias) {
  const Share all_images{0, images}, mine = share(rows, team, thread);
  if (dx) {
    Share columns = share(ceil_div(depth, kLanes<T>), team, thread);
    columns = {columns.first * kLanes<T>, min(depth, columns.last * kLanes<T>)};
    product<T>(dy, rows, 1, rows, weight, depth, all_images, columns, add, dx);
  }
  if (dweight) product<T>(dy, 1, rows, images, x, depth, mine, {0, depth}, false, dweight);
  if (!dbias) return;
  for (int64_t r = mine.first; r < mine.last; ++r) {
    T sum = 0;
    for (int64_t b = 0; b < images; ++b) sum += dy[b * rows + r];
    dbias[r] = sum;
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
