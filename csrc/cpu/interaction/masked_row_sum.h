// Sums of selected rows of a panel: the product of a matrix of zeros and ones with the panel.
//
// Such a matrix needs no multiplications. Still, two of every three of its rows use multiply-adds; the third looks up
// the row to add, which is a row of the panel or a row of zeros. On cores with separate ports for additions, this keeps
// both kinds of port busy.
#pragma once

#include <type_traits>

#include "cpu/interaction/packed_matrix.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Rows and vectors that are summed in registers at once, and the rows of the panel whose part fits in the first-level
// cache.
inline constexpr int kChoiceRows = 6, kThird = 3;
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kChoiceColumns = 4;
#else
inline constexpr int kChoiceColumns = 2;
#endif
inline constexpr int64_t kChoiceDepth = 128;
// Whether looking up pays. With AVX2 a block has so few vectors that loads limit it, not multiply-adds.
inline constexpr bool kLooksUp = kVectorBytes != 32;

// Whether the summands of a row are looked up.
constexpr bool is_third(int64_t row) { return row % kThird == kThird - 1; }

// The position of a row, in elements from the row of zeros.
template <typename T>
using Place = std::remove_reference_t<decltype(Mask<T>{}[0])>;

template <typename T>
MTLKIT_INLINE Mask<T> load_mask(const Place<T>* places) {
  Mask<T> mask;
  std::memcpy(&mask, places, sizeof mask);
  return mask;
}

template <typename T>
MTLKIT_INLINE void store_mask(Place<T>* places, Mask<T> mask) {
  std::memcpy(places, &mask, sizeof mask);
}

// The matrix of choices. With `by_rows`, rows are contiguous and `stride` elements apart; else columns are.
template <typename T, bool by_rows>
struct Choice {
  const T* numbers;
  const Place<T>* places;  // only if all numbers are 0 or 1, else null
  int64_t stride;
};

template <typename T>
struct Rows {
  const T *rows, *zeros;
  int64_t pitch, vectors;
};

// sum[i][j] = the sum of choice[row + i][k] panel[k][vector + j] over k in [first, last). Not inlined, since the loop
// needs all registers.
template <typename T, int columns, bool looked_up, bool by_rows>
[[gnu::noinline]] void sum_block(const Choice<T, by_rows>& choice, int64_t row, int64_t first, int64_t last,
                                 const Rows<T>& panel, int64_t vector, Vec<T>* total) {
  constexpr int lanes = kLanes<T>;
  const int64_t across = by_rows ? choice.stride : 1, along = by_rows ? 1 : choice.stride, pitch = panel.pitch;
  const T* number[kChoiceRows / kThird];
  const Place<T>* place[kChoiceRows / kThird];
#pragma GCC unroll 2
  for (int q = 0; q < kChoiceRows / kThird; ++q) {
    number[q] = choice.numbers + (row + kThird * q) * across + first * along;
    if (looked_up) place[q] = choice.places + (row + kThird * (q + 1) - 1) * across + first * along;
  }
  const T *here = panel.rows + first * pitch + vector * lanes, *const zeros = panel.zeros + vector * lanes;
  Vec<T> sum[kChoiceRows][columns] = {};
  for (int64_t k = first; k < last; ++k) {
    Vec<T> v[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) v[j] = load(here + j * lanes);
#pragma GCC unroll 6
    for (int i = 0; i < kChoiceRows; ++i) {
      if (looked_up && is_third(i)) {
        const T* chosen = zeros + *place[i / kThird];
#pragma GCC unroll 4
        for (int j = 0; j < columns; ++j) sum[i][j] += load(chosen + j * lanes);
      } else {
        const Vec<T> w = splat(number[i / kThird][i % kThird * across]);
#pragma GCC unroll 4
        for (int j = 0; j < columns; ++j) sum[i][j] += w * v[j];
      }
    }
#pragma GCC unroll 2
    for (int q = 0; q < kChoiceRows / kThird; ++q) {
      number[q] += along;
      if (looked_up) place[q] += along;
    }
    here += pitch;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kChoiceRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) total[i * columns + j] = sum[i][j];
  }
}

template <int most, typename F>
MTLKIT_INLINE void with_count(int64_t count, F f) {
  if constexpr (most > 1) {
    if (count < most) return with_count<most - 1>(count, f);
  }
  f(std::integral_constant<int, most>{});
}

// Calls put(row, vector, sum) for all `rows`, rounded up to whole blocks, and all vectors of the panel, once for each
// part of the depth, with the sums over that part. Prefetches `ahead` meanwhile.
template <typename T, bool by_rows, typename F>
void sum_chosen(const Choice<T, by_rows>& choice, int64_t rows, int64_t depth, const Rows<T>& panel, Ahead ahead,
                F put) {
  const int64_t parts = ceil_div(depth, kChoiceDepth), step = ceil_div(depth, parts);
  const int64_t lines = ahead.share(parts * ceil_div(panel.vectors, kChoiceColumns) * ceil_div(rows, kChoiceRows));
  for (int64_t first = 0; first < depth; first += step) {
    const int64_t last = min(depth, first + step);
    for (int64_t j = 0, count; j < panel.vectors; j += count) {
      count = ceil_div(panel.vectors - j, ceil_div(panel.vectors - j, kChoiceColumns));
      with_count<kChoiceColumns>(count, [&](auto columns) {
        for (int64_t row = 0; row < rows; row += kChoiceRows) {
          ahead.step(lines);
          Vec<T> sum[kChoiceRows * columns()];
          choice.places ? sum_block<T, columns(), true>(choice, row, first, last, panel, j, sum)
                        : sum_block<T, columns(), false>(choice, row, first, last, panel, j, sum);
          for (int i = 0; i < kChoiceRows; ++i) {
            for (int k = 0; k < columns(); ++k) put(row + i, j + k, sum[i * columns() + k]);
          }
        }
      });
    }
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
