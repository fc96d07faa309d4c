// Shared by the forward and the backward kernel of dwconv_silu.
#pragma once

#include "cuda/device.cuh"
#include "cuda/dwconv_silu/dwconv_silu.h"

namespace mtlkit::cuda {

inline constexpr int kWindow = 3;  // rows and columns of the filter

// The pack of channels and the column of a thread in its block. `across`: neighbouring threads have neighbouring
// channels, for channels-last images; else neighbouring columns.
struct ConvThread {
  int pack, column;
};

__device__ inline ConvThread conv_thread(bool across) {
  const int thread = static_cast<int>(threadIdx.x);
  if (across) return {thread % kConvPacks, thread / kConvPacks};
  return {thread / kConvColumns, thread % kConvColumns};
}

// The position of column `index`: image, rows `first` to `end` - 1 of its strip, column w.
struct ConvColumn {
  int64_t image;
  int first, end, w;
};

__device__ inline ConvColumn conv_column(const DwconvSilu& p, const ConvStrips& strips, int64_t index) {
  const int64_t strip = index / p.shape.width, image = strip / strips.strips;
  const int64_t first = (strip - image * strips.strips) * strips.rows, end = first + strips.rows;
  return {image, static_cast<int>(first), static_cast<int>(end < p.shape.height ? end : p.shape.height),
          static_cast<int>(index - strip * p.shape.width)};
}

// The taps and the bias of kCount channels from `c` on; zeros for channels beyond the last.
template <int kCount>
struct Filter {
  float taps[kTaps][kCount], bias[kCount];

  __device__ Filter(const DwconvSilu& p, int64_t c) {
    for (int i = 0; i < kCount; ++i) {
      const bool there = c + i < p.shape.channels;
      for (int tap = 0; tap < kTaps; ++tap) taps[tap][i] = there ? p.weight[(c + i) * kTaps + tap] : 0.0f;
      bias[i] = there && p.bias ? p.bias[c + i] : 0.0f;
    }
  }
};

template <typename T>
__device__ inline T* pixel(const Tensor<4>& t, int64_t image, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(t.data) + image * t.stride[0] + c * t.stride[1] + h * t.stride[2] + w * t.stride[3];
}

// Goes down a column of x: next() loads the three pixels around the column in the next row, zeros beyond the border.
template <typename T, int kCount>
class Descent {
 public:
  // Starts at row h; rows from `bottom` on are zeros.
  __device__ Descent(const DwconvSilu& p, const ConvColumn& column, int64_t c, int h, int64_t bottom)
      : at_(pixel<const T>(p.x, column.image, c, h, column.w)),
        down_(p.x.stride[2]),
        right_(p.x.stride[3]),
        h_(h),
        bottom_(static_cast<unsigned>(bottom < p.shape.height ? bottom : p.shape.height)),
        has_left_(column.w > 0),
        has_right_(column.w < p.shape.width - 1) {}

  __device__ void next(Pack<T, kCount> (&row)[kWindow]) {
    const bool inside = static_cast<unsigned>(h_) < bottom_;
    row[0] = load_or_zero<kCount>(inside && has_left_, at_ - right_);
    row[1] = load_or_zero<kCount>(inside, at_);
    row[2] = load_or_zero<kCount>(inside && has_right_, at_ + right_);
    at_ += down_;
    ++h_;
  }

 private:
  const T* at_;
  int64_t down_, right_;
  int h_;
  unsigned bottom_;
  bool has_left_, has_right_;
};

// Whether kCount neighbouring channels of every pixel can be loaded and stored at once.
template <int kCount>
bool packs(const Tensor<4>& t) {
  return t.stride[1] == 1 && reinterpret_cast<uintptr_t>(t.data) % (kCount * size_of(t.dtype)) == 0 &&
         t.stride[0] % kCount == 0 && t.stride[2] % kCount == 0 && t.stride[3] % kCount == 0;
}

}  // namespace mtlkit::cuda
