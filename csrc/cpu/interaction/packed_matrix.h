// Panels: matrices packed into whole vectors of the type of computation, and their products.
#pragma once

#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Rows and vectors of a product that are summed in registers at once.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kRows = 12;
#else
inline constexpr int kRows = 6;
#endif
inline constexpr int kColumns = 2;

// The pitch of a panel, in elements: whole vectors, but not a large power of two, where all rows would compete for the
// same lines of the first-level cache.
template <typename T>
MTLKIT_INLINE int64_t pitch_of(int64_t columns) {
  const int64_t pitch = round_up(columns, kLanes<T>);
  return pitch * sizeof(T) % 1024 ? pitch : pitch + kLanes<T>;
}

// sum[i][j] += a[i][k] b[k][j], summed over k: kRows rows of scalars by columns of vectors.
template <typename T, int columns>
MTLKIT_INLINE void multiply(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t depth,
                            Vec<T> (&sum)[kRows][columns]) {
  static_assert(kRows % 3 == 0, "three rows are addressed from one pointer");
  const T* row[kRows / 3];
#pragma GCC unroll 4
  for (int q = 0; q < kRows / 3; ++q) row[q] = a + 3 * q * a_pitch;
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> v[columns];
#pragma GCC unroll 2
    for (int j = 0; j < columns; ++j) v[j] = load(b + j * kLanes<T>);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> w = splat(row[i / 3][i % 3 * a_pitch]);
#pragma GCC unroll 2
      for (int j = 0; j < columns; ++j) sum[i][j] += w * v[j];
    }
#pragma GCC unroll 4
    for (int q = 0; q < kRows / 3; ++q) ++row[q];
    b += b_pitch;
  }
}

// Calls f(std::integral_constant<int, columns>{}, j) for `count` vectors, kColumns at a time and then one at a time.
template <typename F>
MTLKIT_INLINE void by_columns(int64_t count, F f) {
  int64_t j = 0;
  for (; j + kColumns <= count; j += kColumns) f(std::integral_constant<int, kColumns>{}, j);
  for (; j < count; ++j) f(std::integral_constant<int, 1>{}, j);
}

// panel[row][column] <- element at data + row * row_stride + column * column_stride, in whole vectors; elements after
// the last column are 0. `ahead` also prefetches the same number of following columns or rows, along the contiguous
// dimension.
template <typename T>
void pack(const void* data, DType dtype, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
          T* panel, int64_t pitch, bool ahead = false) {
  constexpr int lanes = kLanes<T>;
  with_element(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* source = static_cast<const typename E::Storage*>(data);
    if (column_stride == 1) {
      const int64_t whole = columns / lanes * lanes;
      for (int64_t r = 0; r < rows; ++r) {
        const auto* from = source + r * row_stride;
        T* to = panel + r * pitch;
        for (int64_t c = 0; c < whole; c += lanes) {
          if (ahead) __builtin_prefetch(from + c + columns, 0, 2);
          store(to + c, E::read(from + c, T{}));
        }
        if (whole < columns) store(to + whole, read_some<T, E>(from + whole, columns - whole));
      }
      return;
    }
    for (int64_t c = 0; c < columns; c += lanes) {
      const int64_t some_columns = min(lanes, columns - c);
      for (int64_t r = 0; r < rows; r += lanes) {
        const int64_t some_rows = min(lanes, rows - r);
        const auto* from = source + r * row_stride + c * column_stride;
        Vec<T> block[lanes];
        if (row_stride == 1 && some_rows == lanes && some_columns == lanes) {
          for (int64_t i = 0; i < lanes; ++i) {
            block[i] = E::read(from + i * column_stride, T{});
            if (ahead) __builtin_prefetch(from + i * column_stride + rows, 0, 2);
          }
          transpose<T>(block);
          for (int64_t i = 0; i < lanes; ++i) store(panel + (r + i) * pitch + c, block[i]);
        } else {
          load_tile_of<T, E>(from, column_stride, row_stride, some_columns, some_rows, block);
          for (int64_t i = 0; i < some_rows; ++i) store(panel + (r + i) * pitch + c, block[i]);
        }
      }
    }
  });
}

// The reverse of `pack`: writes only the first `columns` of a row.
template <typename T>
void unpack(void* data, DType dtype, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
            const T* panel, int64_t pitch) {
  constexpr int lanes = kLanes<T>;
  with_element(dtype, [&](auto element) {
    using E = decltype(element);
    auto* target = static_cast<typename E::Storage*>(data);
    if (column_stride == 1) {
      const int64_t whole = columns / lanes * lanes;
      for (int64_t r = 0; r < rows; ++r) {
        const T* from = panel + r * pitch;
        auto* to = target + r * row_stride;
        for (int64_t c = 0; c < whole; c += lanes) E::write(to + c, load(from + c));
        if (whole < columns) write_some<T, E>(to + whole, load(from + whole), columns - whole);
      }
      return;
    }
    for (int64_t c = 0; c < columns; c += lanes) {
      const int64_t some_columns = min(lanes, columns - c);
      for (int64_t r = 0; r < rows; r += lanes) {
        const int64_t some_rows = min(lanes, rows - r);
        auto* to = target + r * row_stride + c * column_stride;
        Vec<T> block[lanes];
        for (int64_t i = 0; i < some_rows; ++i) block[i] = load(panel + (r + i) * pitch + c);
        if (row_stride == 1 && some_rows == lanes && some_columns == lanes) {
          transpose<T>(block);
          for (int64_t i = 0; i < lanes; ++i) E::write(to + i * column_stride, block[i]);
        } else {
          store_tile_of<T, E>(to, column_stride, row_stride, some_columns, some_rows, block);
        }
      }
    }
  });
}

// Prefetches the memory of the next panel, some cache lines at a time, during other work.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* data, DType dtype, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns)
      : data_(static_cast<const char*>(data)) {
    const bool by_columns = column_stride == 1;
    const int64_t run = by_columns ? columns : rows, size = size_of(dtype);
    stride_ = (by_columns ? row_stride : column_stride) * size;
    lines_ = ceil_div(run * size, kLine);
    left_ = (by_columns ? rows : columns) * lines_;
  }

  // The remaining lines per step, for a number of steps.
  int64_t share(int64_t steps) const { return ceil_div(left_, steps); }

  MTLKIT_INLINE void step(int64_t lines) {
    for (int64_t some = min(lines, left_); some > 0; --some, --left_) {
      __builtin_prefetch(data_ + line_ * kLine, 0, 3);
      if (++line_ == lines_) line_ = 0, data_ += stride_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* data_ = nullptr;
  int64_t stride_ = 0, lines_ = 0, left_ = 0, line_ = 0;
};

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
