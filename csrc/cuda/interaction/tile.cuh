// Shared by the kernels of task interaction: tiled products through shared memory, and sums over a block.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/interaction/interaction.h"

namespace mtlkit::cuda {

template <typename T>
__device__ inline T* row_of(const Tensor<3>& t, int64_t image, int64_t channel) {
  return static_cast<T*>(t.data) + image * t.stride[0] + channel * t.stride[1];
}

// Whether the channels are contiguous, as in a channels-last map, rather than the pixels.
__device__ __host__ inline bool channels_side_by_side(const Tensor<3>& x, int64_t pixels) {
  return x.stride[2] != 1 || (x.stride[1] == 1 && pixels == 1);
}

// An element of a tile. `across`: neighbouring threads have neighbouring channels, else neighbouring pixels.
struct Place {
  int channel, pixel;
};

template <int kChannels, int kPixels>
__device__ inline Place place_of(int index, bool across) {
  if (across) return {index % kChannels, index / kChannels};
  return {index / kPixels, index % kPixels};
}

// Pitch of a factor's kTileDepth lines in shared memory, in floats. Lines of the left factor are multiples of 16 bytes;
// the pitch of the right factor is odd, so that a column touches all banks.
template <int kRows>
inline constexpr int kLeftPitch = kRows * kTileWarps + 4;
inline constexpr int kRightPitch = kTileColumns + 1;

template <int kRows>
inline constexpr int kTileFloats = kTileDepth * (kLeftPitch<kRows> + kRightPitch);

// Adds the product of left and right to sum: rows warp * kRows + i of the tile, columns lane and lane + 32.
template <int kRows>
__device__ inline void multiply(const float* left, const float* right, float (&sum)[kRows][2]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll(kRows > 12 ? 1 : 4)  // limited by registers
  for (int k = 0; k < kTileDepth; ++k) {
    const float first = right[k * kRightPitch + lane], second = right[k * kRightPitch + lane + kWarp];
#pragma unroll
    for (int i = 0; i < kRows; i += 4) {
      const Pack four = load<4>(left + k * kLeftPitch<kRows> + warp * kRows + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[i + j][0] += four.values[j] * first;
        sum[i + j][1] += four.values[j] * second;
      }
    }
  }
}

__device__ inline float larger(float a, float b) { return a > b ? a : b; }

__device__ inline float warp_max(float value) {
  for (int lane_mask = kWarp / 2; lane_mask > 0; lane_mask /= 2) value = larger(value, shuffle_xor(value, lane_mask));
  return value;
}

// The sum of a lane's value over the warps of a block, in a fixed order and bitwise equal in all warps; `scratch` holds
// a float per thread.
__device__ inline float sum_over_warps(float* scratch, float value) {
  scratch[threadIdx.x] = value;
  block_sync();
  float total = 0.0f;
  for (int warp = 0; warp < kTileWarps; ++warp) total += scratch[warp * kWarp + threadIdx.x % kWarp];
  block_sync();
  return total;
}

__device__ inline float max_over_warps(float* scratch, float value) {
  scratch[threadIdx.x] = value;
  block_sync();
  float most = scratch[threadIdx.x % kWarp];
  for (int warp = 1; warp < kTileWarps; ++warp) most = larger(most, scratch[warp * kWarp + threadIdx.x % kWarp]);
  block_sync();
  return most;
}

__device__ inline float exponential(float x) { return exp2_approx(kLog2E * x); }

// Whether ReLU passes the gradient at z.
__device__ inline bool positive(float z) { return !(z <= 0.0f); }

// The type of a word of signs, one bit per row of a warp.
template <int kRows>
struct SignWord {
  using Type = uint32_t;
};
template <>
struct SignWord<4> {
  using Type = uint8_t;
};
template <>
struct SignWord<8> {
  using Type = uint8_t;
};
template <>
struct SignWord<12> {
  using Type = uint16_t;
};

// Calls launcher(T{}, rows) with the map's element type and the rows per warp as a constant.
template <typename F>
int for_projection(DType dtype, int64_t projected, F launcher) {
  return for_dtype(dtype, [&](auto zero) {
    switch (projection_rows(projected)) {
      case 4:
        return launcher(zero, std::integral_constant<int, 4>{});
      case 8:
        return launcher(zero, std::integral_constant<int, 8>{});
      case 12:
        return launcher(zero, std::integral_constant<int, 12>{});
      default:
        return launcher(zero, std::integral_constant<int, 24>{});
    }
  });
}

inline bool fits_grid(int64_t blocks) { return blocks <= INT32_MAX; }

}  // namespace mtlkit::cuda
