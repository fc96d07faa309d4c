// Shared by the forward and the backward kernels of norm_gate.
#pragma once

#include "cuda/device.cuh"
#include "cuda/norm_gate/norm_gate.h"

namespace mtlkit::cuda {

inline constexpr int kVector = kNormGateVector;

template <typename T>
__device__ inline T* row_of(const Tensor<2>& tensor, int64_t row) {
  return static_cast<T*>(tensor.data) + row * tensor.stride[0];
}

// Sum over the kLanes neighbouring lanes that own a row; bitwise equal in all of them.
template <int kLanes>
__device__ inline float row_sum(float value) {
  for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) value += shuffle_xor(value, lane_mask);
  return value;
}

// A lane's share of a row, in packs of four channels: lane, lane + kLanes, ...
template <int kLanes, int kPacks>
struct Share {
  int lane, packs;  // packs: per row; 0 if the row does not exist

  // Calls f(j, c) for each pack j of the lane; c is its first channel.
  template <typename F>
  __device__ void each(F f) const {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (lane + j * kLanes < packs) f(j, (lane + j * kLanes) * kVector);
    }
  }
};

// Loads the row into `x`; zeros if the lane has no channel there.
template <typename X, int kLanes, int kPacks>
__device__ inline void load_row(const NormGate& p, int64_t row, const Share<kLanes, kPacks>& share,
                                float (&x)[kPacks][kVector]) {
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    for (int i = 0; i < kVector; ++i) x[j][i] = 0.0f;
  }
  share.each([&](int j, int c) {
    const Pack p_x = load<kVector>(row_of<const X>(p.x, row) + c);
    for (int i = 0; i < kVector; ++i) x[j][i] = to_float(p_x.values[i]);
  });
}

__device__ inline float rstd_of(float variance, float eps) {
  return rsqrt_approx((variance > 0.0f ? variance : 0.0f) + eps);
}

// Normalises a row in place, without weight and bias; returns 1 / sqrt(variance + eps). After subtraction, the
// remaining mean is the rounding error of the first one, and is subtracted too: it matters if the mean is large
// compared with the variance.
template <int kLanes, int kPacks>
__device__ inline float normalise(const NormGate& p, const Share<kLanes, kPacks>& share, float (&x)[kPacks][kVector]) {
  const float per_channel = 1.0f / static_cast<float>(p.shape.channels);
  float sum = 0.0f, squares = 0.0f, drift = 0.0f;
  share.each([&](int j, int) {
    for (int i = 0; i < kVector; ++i) sum += x[j][i];
  });
  const float mean = row_sum<kLanes>(sum) * per_channel;
  share.each([&](int j, int) {
    for (int i = 0; i < kVector; ++i) {
      x[j][i] -= mean;
      squares += x[j][i] * x[j][i];
      drift += x[j][i];
    }
  });
  drift = row_sum<kLanes>(drift) * per_channel;
  const float rstd = rstd_of(row_sum<kLanes>(squares) * per_channel - drift * drift, p.eps);
  share.each([&](int j, int) {
    for (int i = 0; i < kVector; ++i) x[j][i] = (x[j][i] - drift) * rstd;
  });
  return rstd;
}

// Four channels of weight or bias; `missing` if it was not given.
__device__ inline Pack<float, kVector> parameters(const float* values, int c, float missing) {
  return values ? load<kVector>(values + c) : Pack<float, kVector>{{missing, missing, missing, missing}};
}

// ---- Launches -------------------------------------------------------------------------------------------------------

inline bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Whether every row of `tensor` starts at an address that is a multiple of kVector elements.
inline bool aligned(const Tensor<2>& tensor) {
  return !tensor || (aligned(tensor.data, kVector * size_of(tensor.dtype)) && tensor.stride[0] % kVector == 0);
}

inline bool aligned(const NormGate& p) {
  return p.shape.channels % kVector == 0 && aligned(p.x) && aligned(p.z) &&
         aligned(p.weight, kVector * sizeof(float)) && aligned(p.bias, kVector * sizeof(float));
}

// Calls launcher(X{}, Y{}) for the dtype of x and that of z, out and dout; returns kInvalidValue if there is no kernel.
template <typename F>
int for_dtypes(DType x, DType y, F launcher) {
  if (x == DType::kFloat32 && y == DType::kFloat32) return launcher(float{}, float{});
  if (x == DType::kFloat32 && y == DType::kBFloat16) return launcher(float{}, bf16{});
  if (x == DType::kFloat32 && y == DType::kFloat16) return launcher(float{}, f16{});
  if (x == DType::kBFloat16 && y == DType::kBFloat16) return launcher(bf16{}, bf16{});
  if (x == DType::kFloat16 && y == DType::kFloat16) return launcher(f16{}, f16{});
  return kInvalidValue;
}

}  // namespace mtlkit::cuda
