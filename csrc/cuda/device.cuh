// The only file that uses CUDA's launch syntax, special instructions and 16-bit types.
//
// The sources also compile as HIP (tests/cuda/test_hip.py), but no build of mtlkit uses that: they have not run on an
// AMD GPU, and block sizes and shared memory are chosen for NVIDIA GPUs.
//
// Kernels use __global__, threadIdx, blockIdx, blockDim and gridDim as usual, and everything else through the names
// below. With MTLKIT_CUDA_ON_HOST, a C++ compiler compiles the same sources: every instruction has a plain fallback
// here, and "cuda_on_host.h", found on the include path, defines the qualifiers, the indices and, in the namespace
// cuda_on_host:
//
//   int launch(grid, block, shared_bytes, kernel, arguments...)
//   void* dynamic_shared()                          the block's shared memory
//   void block_sync(int line)                       all threads of the block meet, in the same line of the source
//   float shuffle_xor(float, int lane_mask, line)   among the 32 lanes of a warp
//   void copy_async(void* to, const void* from, int bytes), copy_async_commit(), copy_async_wait(int line)
//   void check_aligned(const void* address, int bytes)
#pragma once

#include <cstdint>

#include "common/tensor.h"

#ifdef MTLKIT_CUDA_ON_HOST
#include <cmath>
#include <cstring>

#include "cuda_on_host.h"
#elif defined(__HIP__)
#include <hip/hip_runtime.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace mtlkit::cuda {

inline constexpr int kWarp = 32;
inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr int kSuccess = 0, kInvalidValue = 1;  // cudaSuccess and cudaErrorInvalidValue

#if defined(MTLKIT_CUDA_ON_HOST) || defined(__HIP__)

// bfloat16 as bits, since not every compiler has a type for it.
struct bf16 {
  uint16_t bits;
};

template <typename To, typename From>
__device__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return bits_as<float>(uint32_t{value.bits} << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline bf16 from_float<bf16>(float value) {
  if (value != value) return bf16{0x7fff};
  const auto bits = bits_as<uint32_t>(value);
  return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

#endif

#if defined(MTLKIT_CUDA_ON_HOST)

struct f16 {
  uint16_t bits;
};

inline float to_float(f16 value) {
  const uint32_t sign = uint32_t{value.bits} >> 15 << 31, magnitude = uint32_t{value.bits} << 17 >> 4;
  const bool finite = magnitude < 0x7c00u << 13;
  const float scaled = finite ? bits_as<float>(magnitude) * 0x1p112f : bits_as<float>(magnitude | 0x7f800000);
  return bits_as<float>(bits_as<uint32_t>(scaled) | sign);
}

template <>
inline f16 from_float<f16>(float value) {
  if (std::isnan(value)) return f16{0x7fff};
  const float magnitude = std::fabs(value);
  const auto bits = bits_as<uint32_t>(magnitude);
  uint32_t result = 0x7c00;  // infinity; the largest number is 65504, and 65520 and above round up
  if (magnitude < 0x1p-14f) {
    result = static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f));  // subnormal
  } else if (magnitude < 65520.0f) {
    result = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
  }
  return f16{static_cast<uint16_t>(result | (std::signbit(value) ? 0x8000 : 0))};
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
inline bool has_sign(float x) { return std::signbit(x); }
inline int reread_thread() { return static_cast<int>(threadIdx.x); }
inline float shuffle_xor(float value, int lane_mask, int line = __builtin_LINE()) {
  return cuda_on_host::shuffle_xor(value, lane_mask, line);
}
inline void block_sync(int line = __builtin_LINE()) { cuda_on_host::block_sync(line); }
inline void check_aligned(const void* address, int bytes) { cuda_on_host::check_aligned(address, bytes); }

template <int kBytes>
void copy_async(void* to, const void* from) {
  cuda_on_host::copy_async(to, from, kBytes);
}
inline void copy_async_commit() { cuda_on_host::copy_async_commit(); }
inline void copy_async_wait(int line = __builtin_LINE()) { cuda_on_host::copy_async_wait(line); }

inline char* dynamic_shared() { return static_cast<char*>(cuda_on_host::dynamic_shared()); }

template <typename... Parameters, typename... Arguments>
int launch_kernel(unsigned grid, unsigned block, unsigned shared_bytes, void*, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  return cuda_on_host::launch(grid, block, shared_bytes, kernel, arguments...);
}

#elif defined(__HIP__)

// A wavefront of 64 lanes counts as two warps, which shuffle separately.
using f16 = _Float16;

__device__ inline float to_float(f16 value) { return static_cast<float>(value); }
template <>
__device__ inline f16 from_float<f16>(float value) {
  return static_cast<f16>(value);
}

__device__ inline float exp2_approx(float x) { return exp2f(x); }
__device__ inline float log2_approx(float x) { return log2f(x); }
__device__ inline float reciprocal_approx(float x) { return 1.0f / x; }
__device__ inline float rsqrt_approx(float x) { return rsqrtf(x); }
__device__ inline bool has_sign(float x) { return __float_as_int(x) < 0; }
__device__ inline int reread_thread() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+v"(thread));
  return thread;
}
__device__ inline float shuffle_xor(float value, int lane_mask) { return __shfl_xor(value, lane_mask, kWarp); }
__device__ inline void block_sync() { __syncthreads(); }
__device__ inline void check_aligned(const void*, int) {}

template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
  struct alignas(kBytes) Bytes {
    unsigned words[kBytes / 4];
  };
  *static_cast<Bytes*>(to) = *static_cast<const Bytes*>(from);
}
__device__ inline void copy_async_commit() {}
__device__ inline void copy_async_wait() {}

__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(16) char shared_memory[];
  return shared_memory;
}

template <typename... Parameters, typename... Arguments>
int launch_kernel(unsigned grid, unsigned block, unsigned shared_bytes, void* stream, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  kernel<<<grid, block, shared_bytes, static_cast<hipStream_t>(stream)>>>(arguments...);
  return static_cast<int>(hipGetLastError());
}

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
__device__ inline float log2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
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
// Whether the sign bit is set; true for -0.
__device__ inline bool has_sign(float x) { return __float_as_int(x) < 0; }
// threadIdx.x, read again: the compiler cannot reuse values that it computed from an earlier read.
__device__ inline int reread_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
__device__ inline float shuffle_xor(float value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
__device__ inline void block_sync() { __syncthreads(); }
__device__ inline void check_aligned(const void*, int) {}  // the GPU faults on misaligned addresses

// An asynchronous copy of 4, 8 or 16 bytes from global to shared memory; both addresses are multiples of kBytes.
// copy_async_wait returns when all committed copies of the thread are complete; other threads see them after a
// block_sync.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes) : "memory");
  }
#else  // Turing has no asynchronous copies: copy at once
  struct alignas(kBytes) Bytes {
    unsigned words[kBytes / 4];
  };
  *static_cast<Bytes*>(to) = *static_cast<const Bytes*>(from);
#endif
}
__device__ inline void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ inline void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The block's shared memory; the launch sets its size.
__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(16) char shared_memory[];
  return shared_memory;
}

// Launches `kernel` and returns the cudaError_t of the launch as an int, 0 for success.
template <typename... Parameters, typename... Arguments>
int launch_kernel(unsigned grid, unsigned block, unsigned shared_bytes, void* stream, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  constexpr unsigned kAlwaysAllowed = 48 << 10;
  if (shared_bytes > kAlwaysAllowed) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return static_cast<int>(cudaGetLastError());
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}

#endif

// kCount neighbouring elements, moved by a single load or store.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <int kCount, typename T>
__device__ inline Pack<T, kCount> load(const T* from) {
  check_aligned(from, sizeof(Pack<T, kCount>));
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

template <int kCount, typename T>
__device__ inline void store(T* to, const Pack<T, kCount>& pack) {
  check_aligned(to, sizeof(Pack<T, kCount>));
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// kCount neighbouring elements, or zeros if `there` is false.
template <int kCount, typename T>
__device__ inline Pack<T, kCount> load_or_zero(bool there, const T* from) {
  constexpr int kWords = sizeof(T) * kCount / 4;
  if constexpr (sizeof(T) < 4 && kWords > 0) {
    // select in whole registers: compilers do not split these to choose between them and zero
    const auto words = there ? load<kWords>(reinterpret_cast<const unsigned*>(from)) : Pack<unsigned, kWords>{};
    Pack<T, kCount> result;
    memcpy(&result, &words, sizeof result);
    return result;
  } else {
    return there ? load<kCount>(from) : Pack<T, kCount>{};
  }
}

// Sum over the 32 lanes of a warp; bitwise equal in all lanes.
__device__ inline float warp_sum(float value) {
  for (int lane_mask = kWarp / 2; lane_mask > 0; lane_mask /= 2) value += shuffle_xor(value, lane_mask);
  return value;
}

// 1 / (1 + exp(-z)). For z below about -88, exp2 is infinite and the quotient 0, which is correct.
__device__ inline float sigmoid(float z) { return reciprocal_approx(1.0f + exp2_approx(-kLog2E * z)); }

__device__ inline float silu(float z) { return z * sigmoid(z); }

// Calls launcher(T{}) for a dtype; returns kInvalidValue if there is no kernel.
template <typename F>
int for_dtype(DType dtype, F launcher) {
  if (dtype == DType::kFloat32) return launcher(float{});
  if (dtype == DType::kBFloat16) return launcher(bf16{});
  if (dtype == DType::kFloat16) return launcher(f16{});
  return kInvalidValue;
}

}  // namespace mtlkit::cuda
