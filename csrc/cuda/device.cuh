// The one place that names CUDA's launch syntax, special instructions and 16-bit types.
//
// Kernels use __global__, threadIdx, blockIdx, blockDim and gridDim as anywhere, and all else by the names below. With
// MTLKIT_CUDA_ON_HOST a C++ compiler takes the same sources: every instruction has a plain fallback here, and
// "cuda_on_host.h", from the include path of whoever runs kernels on a CPU, brings the qualifiers, the indices,
// cuda_on_host::launch(grid, block, shared_bytes, kernel, arguments...) -> int and cuda_on_host::shuffle_xor.
#pragma once

#include <cstdint>

#include "common/tensor.h"

#ifdef MTLKIT_CUDA_ON_HOST
#include <cmath>
#include <cstring>

#include "cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace mtlkit::cuda {

inline constexpr int kWarp = 32;
inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr int kSuccess = 0, kInvalidValue = 1;  // cudaSuccess and cudaErrorInvalidValue

#ifdef MTLKIT_CUDA_ON_HOST

struct bf16 {
  uint16_t bits;
};
using f16 = _Float16;

inline float to_float(float value) { return value; }
inline float to_float(f16 value) { return static_cast<float>(value); }
inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename T>
T from_float(float value) {
  return static_cast<T>(value);
}
template <>
inline bf16 from_float<bf16>(float value) {
  if (std::isnan(value)) return bf16{0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
inline float shuffle_xor(float value, int lane_mask) { return cuda_on_host::shuffle_xor(value, lane_mask); }

#define MTLKIT_LAUNCH(grid, block, shared_bytes, stream, kernel, ...) \
  (static_cast<void>(stream), cuda_on_host::launch(grid, block, shared_bytes, kernel, __VA_ARGS__))

#else

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(f16 value) { return __half2float(value); }
__device__ inline float to_float(bf16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline f16 from_float<f16>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ inline float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ inline float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ inline float rsqrt_approx(float x) {
  float result;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ inline float shuffle_xor(float value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

// Launches `kernel` and answers with the cudaError_t of the launch as an int, 0 for success.
#define MTLKIT_LAUNCH(grid, block, shared_bytes, stream, kernel, ...)                     \
  (kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), \
   static_cast<int>(cudaGetLastError()))

#endif

// kCount neighbouring elements, moved by one load or store of their size.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <int kCount, typename T>
__device__ inline Pack<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

template <int kCount, typename T>
__device__ inline void store(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// Sum over the 32 lanes of a warp, the same bits in every lane.
__device__ inline float warp_sum(float value) {
  for (int lane_mask = kWarp / 2; lane_mask > 0; lane_mask /= 2) value += shuffle_xor(value, lane_mask);
  return value;
}

// z * sigmoid(z). Below about -88 exp2 is infinite, and the quotient the correct -0.
__device__ inline float silu(float z) { return z * reciprocal_approx(1.0f + exp2_approx(-kLog2E * z)); }

}  // namespace mtlkit::cuda
