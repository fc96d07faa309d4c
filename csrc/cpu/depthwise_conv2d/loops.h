// The loops over a row of the depthwise convolution: forward, input gradient, and filter gradient.
#pragma once

#include "cpu/depthwise_conv2d/items.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Calls f(pixel, sum) for kPixels neighbouring pixels from w on. Without dilation they share their loads.
template <typename T, int kKernel, int kStride, bool kDilated, int kPixels, typename F>
MTLKIT_INLINE void convolve_pixels(const Vec<T>* const* rows, int64_t w, int64_t dilation,
                                   const Filter<T, kKernel>& filter, F f) {
  Vec<T> sum[kPixels];
  for (int k = 0; k < kPixels; ++k) sum[k] = filter.bias;
  const auto add = [&](int i) {
    const Vec<T>* row = rows[i] + w * kStride;
    const Vec<T>* taps = filter.taps + i * kKernel;
    if constexpr (kDilated) {
#pragma GCC unroll 8
      for (int j = 0; j < kKernel; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) sum[k] += row[j * dilation + k * kStride] * taps[j];
      }
    } else {
#pragma GCC unroll 32
      for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
        const Vec<T> x = row[m];
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) {
          const int j = m - k * kStride;
          if (j >= 0 && j < kKernel) sum[k] += x * taps[j];
        }
      }
    }
  };
  if constexpr (kKernel == 3) {  // its taps fit in registers
    add(0), add(1), add(2);
  } else {
#pragma GCC unroll 1
    for (int i = 0; i < kKernel; ++i) add(i);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kPixels; ++k) f(w + k, sum[k]);
}

// Calls f(w, sum) for each pixel of an output row, up to kAbreast - 1 pixels past the width.
template <typename T, int kKernel, int kStride, bool kDilated, typename F>
MTLKIT_INLINE void convolve(const Vec<T>* const* rows, int64_t width, int64_t dilation,
                            const Filter<T, kKernel>& filter, F f) {
  constexpr int kMany = 2 * kAbreast;
  int64_t w = 0;
  if constexpr (kKernel > 3) {
    for (; w + kMany <= width; w += kMany) {
      convolve_pixels<T, kKernel, kStride, kDilated, kMany>(rows, w, dilation, filter, f);
    }
  }
  for (; w < width; w += kAbreast) {
    convolve_pixels<T, kKernel, kStride, kDilated, kAbreast>(rows, w, dilation, filter, f);
  }
}

// The input gradient for stride 2, for pairs of pixels of a padded input row: even pixels only use even taps and odd
// pixels odd taps. `odd` is the parity of the row, which uses tap rows of the same parity. rows[i / 2] is the
// gradient's row for tap row i.
template <typename T, int kKernel>
MTLKIT_INLINE void spread(const Vec<T>* const* rows, int odd, int64_t pairs, const Filter<T, kKernel>& filter,
                          Vec<T>* out) {
  constexpr int kHalf = (kKernel - 1) / 2;
  for (int64_t c = 0; c < pairs; c += kAbreast) {
    Vec<T> sum[2 * kAbreast] = {};
    for (int i = odd; i < kKernel; i += 2) {
      const Vec<T>* row = rows[i / 2] + c;
      const Vec<T>* taps = filter.taps + i * kKernel;
#pragma GCC unroll 8
      for (int n = 0; n < kAbreast + kHalf; ++n) {
        const Vec<T> g = row[n];
#pragma GCC unroll 8
        for (int k = 0; k < kAbreast; ++k) {
          const int j = 2 * (k - n + kHalf);
          if (j >= 0 && j < kKernel) sum[2 * k] += g * taps[j];
          if (j >= 0 && j + 1 < kKernel) sum[2 * k + 1] += g * taps[j + 1];
        }
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 2 * kAbreast; ++k) out[2 * c + k] = sum[k];
  }
}

// The number of filter-gradient rows that fit in registers along with the gradients of kAbreast pixels.
template <int kKernel>
constexpr int kRowsAtOnce = kKernel == 3         ? 3
                            : kVectorBytes == 64 ? (kKernel == 5 ? 5 : 3)
                            : kKernel == 5       ? 2
                                                 : 1;

template <typename T, int kKernel, int kRows, int kStride, bool kDilated, int kPixels>
MTLKIT_INLINE void add_pixels(const Vec<T>* const* rows, int64_t w, int64_t dilation, const Vec<T>* da, Vec<T>* sum) {
  Vec<T> g[kPixels];
  for (int k = 0; k < kPixels; ++k) g[k] = da[w + k];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const Vec<T>* row = rows[i] + w * kStride;
    if constexpr (kDilated) {
#pragma GCC unroll 8
      for (int j = 0; j < kKernel; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) sum[i * kKernel + j] += g[k] * row[j * dilation + k * kStride];
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < (kPixels - 1) * kStride + kKernel; ++m) {
        const Vec<T> x = row[m];
#pragma GCC unroll 8
        for (int k = 0; k < kPixels; ++k) {
          const int j = m - k * kStride;
          if (j >= 0 && j < kKernel) sum[i * kKernel + j] += g[k] * x;
        }
      }
    }
  }
}

// Adds the part of an output row to the filter's gradient; `da` is the row's gradient before SiLU, `rows` are the rows
// of x that it reads.
template <typename T, int kKernel, int kStride, bool kDilated, int kFirst = 0>
MTLKIT_INLINE void add_to_filter(const Vec<T>* const* rows, int64_t width, int64_t dilation, const Vec<T>* da,
                                 Vec<T>* taps) {
  constexpr int kRows = kFirst + kRowsAtOnce<kKernel> <= kKernel ? kRowsAtOnce<kKernel> : kKernel - kFirst;
  Vec<T> sum[kRows * kKernel] = {};
  int64_t w = 0;
  for (; w + kAbreast <= width; w += kAbreast) {
    add_pixels<T, kKernel, kRows, kStride, kDilated, kAbreast>(rows + kFirst, w, dilation, da, sum);
  }
  for (; w < width; ++w) add_pixels<T, kKernel, kRows, kStride, kDilated, 1>(rows + kFirst, w, dilation, da, sum);
  for (int i = 0; i < kRows * kKernel; ++i) taps[kFirst * kKernel + i] += sum[i];
  if constexpr (kFirst + kRows < kKernel) {
    add_to_filter<T, kKernel, kStride, kDilated, kFirst + kRows>(rows, width, dilation, da, taps);
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
