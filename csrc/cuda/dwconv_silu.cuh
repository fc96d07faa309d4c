// What the forward and the backward kernel of dwconv_silu share.
#pragma once

#include "cuda/device.cuh"
#include "cuda/dwconv_silu.h"

namespace mtlkit::cuda {

inline constexpr int kWindow = 3;  // rows and columns of the filter

// Which pack of channels and which column of its block a thread has. `across`: neighbouring threads have neighbouring
// channels, as channels-last images want it; else neighbouring columns.
struct ConvThread {
  int pack, column;
};

__device__ inline ConvThread conv_thread(bool across) {
  const int thread = static_cast<int>(threadIdx.x);
  if (across) return {thread % kConvPacks, thread / kConvPacks};
  return {thread / kConvColumns, thread % kConvColumns};
}

// Where column number `index` lies.
struct ConvColumn {
  int64_t image, first_row, w;
};

__device__ inline ConvColumn conv_column(const DwconvSilu& p, const ConvStrips& strips, int64_t index) {
  const int64_t strip = index / p.width;
  return {strip / strips.strips, strip % strips.strips * strips.rows, index % p.width};
}

// The taps and the bias of kCount channels from `c` on; of channels beyond the last, zeros.
template <int kCount>
struct Filter {
  float taps[kTaps][kCount], bias[kCount];

  __device__ Filter(const DwconvSilu& p, int64_t c) {
    for (int i = 0; i < kCount; ++i) {
      const bool there = c + i < p.channels;
      for (int tap = 0; tap < kTaps; ++tap) taps[tap][i] = there ? p.weight[(c + i) * kTaps + tap] : 0.0f;
      bias[i] = there && p.bias ? p.bias[c + i] : 0.0f;
    }
  }
};

template <typename T>
__device__ inline T* pixel(const Tensor<4>& t, int64_t image, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(t.data) + image * t.stride[0] + c * t.stride[1] + h * t.stride[2] + w * t.stride[3];
}

// kCount channels of a pixel, or zeros where `there` is false.
template <int kCount, typename T>
__device__ inline Pack<T, kCount> load_or_zero(bool there, const T* from) {
  if (there) return load<kCount>(from);
  Pack<T, kCount> zeros;
  for (int i = 0; i < kCount; ++i) zeros.values[i] = from_float<T>(0.0f);
  return zeros;
}

// A row of three neighbouring pixels in row h around column w, zeros beyond the border.
template <int kCount, typename T>
__device__ inline void load_window_row(const DwconvSilu& p, const T* at_row_0, int64_t h, int64_t w, bool there,
                                       Pack<T, kCount> (&row)[kWindow]) {
  const bool inside = there && h >= 0 && h < p.height;
  const T* const centre = at_row_0 + h * p.x.stride[2];
  row[0] = load_or_zero<kCount>(inside && w > 0, centre - p.x.stride[3]);
  row[1] = load_or_zero<kCount>(inside, centre);
  row[2] = load_or_zero<kCount>(inside && w < p.width - 1, centre + p.x.stride[3]);
}

// Whether kCount neighbouring channels of every pixel can be moved at once.
template <int kCount>
bool packs(const Tensor<4>& t) {
  return t.stride[1] == 1 && reinterpret_cast<uintptr_t>(t.data) % (kCount * size_of(t.dtype)) == 0 &&
         t.stride[0] % kCount == 0 && t.stride[2] % kCount == 0 && t.stride[3] % kCount == 0;
}

// Calls launcher(T{}) for a dtype; kInvalidValue where there is no kernel.
template <typename F>
int for_dtype(DType dtype, F launcher) {
  if (dtype == DType::kFloat32) return launcher(float{});
  if (dtype == DType::kBFloat16) return launcher(bf16{});
  if (dtype == DType::kFloat16) return launcher(f16{});
  return kInvalidValue;
}

}  // namespace mtlkit::cuda
