// Task interaction: the projection of a tile of pixels, its sums and the tile's moments.
#include "cuda/interaction/project.cuh"

namespace mtlkit::cuda {
namespace {

// Shared memory: the two factors, a float per thread, each channel's first pixel, and attention's weights.
template <int kRows>
constexpr unsigned shared_bytes() {
  return (kTileFloats<kRows> + kTileThreads + 2 * kTileDepth) * sizeof(float);
}

// The moments of the channels from `first` on, eight threads per channel.
template <typename T>
__device__ inline void find_moments(const PartialSums& part, int first, int channels, int count, const float* right,
                                    const float* shifts) {
  constexpr int kThreads = kTileThreads / kTileDepth, kEach = kTileColumns / kThreads;
  const int k = threadIdx.x / kThreads, start = threadIdx.x % kThreads * kEach;
  const float* const line = right + k * kRightPitch + start;
  float mean = 0.0f, square = 0.0f;
  for (int i = 0; i < kEach; ++i) mean += start + i < count ? line[i] - shifts[k] : 0.0f;
  for (int mask = kThreads / 2; mask > 0; mask /= 2) mean += shuffle_xor(mean, mask);
  mean /= static_cast<float>(count);
  for (int i = 0; i < kEach; ++i) {
    const float d = start + i < count ? line[i] - shifts[k] - mean : 0.0f;
    square += d * d;
  }
  for (int mask = kThreads / 2; mask > 0; mask /= 2) square += shuffle_xor(square, mask);
  if (start == 0 && first + k < channels) {
    part.means(0)[first + k] = mean;
    part.squares(0)[first + k] = square;
  }
}

// The absolute differences between a pixel and its right and lower neighbours.
template <typename T>
__device__ inline float steps(const T* at, float value, int64_t stride, int64_t pixel, int64_t pixels, int64_t width) {
  float sum = 0.0f;
  if (pixel % width + 1 < width) {
    const float d = to_float(at[stride]) - value;
    sum += d < 0.0f ? -d : d;
  }
  if (pixel + width < pixels) {
    const float d = to_float(at[width * stride]) - value;
    sum += d < 0.0f ? -d : d;
  }
  return sum;
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 2) interaction_project_kernel(const Projected params) {
  const InteractionReduce& p = params.reduce;
  const int C = static_cast<int>(p.shape.channels), P = static_cast<int>(p.shape.projected);
  const int64_t L = p.shape.pixels();
  const int tiles = static_cast<int>(ceil_div(L, kTileColumns));
  const int blocks = p.weight ? static_cast<int>(ceil_div(P, kRows * kTileWarps)) : 1;
  const int row = blockIdx.x / blocks, block = blockIdx.x % blocks, tile = row % tiles;
  const int64_t image = row / tiles;
  const int64_t first_pixel = int64_t{tile} * kTileColumns;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, count = pixels_of_tile(tile, L);
  const bool across = channels_side_by_side(p.x, L), again = params.reached != nullptr, lead = block == 0 && !again;
  float* const left = reinterpret_cast<float*>(dynamic_shared());
  float* const right = left + kTileDepth * kLeftPitch<kRows>;
  float* const scratch = right + kTileDepth * kRightPitch;
  float *const shifts = scratch + kTileThreads, *const attn = shifts + kTileDepth;
  const PartialSums part(params, again ? 0 : row);

  float sum[kRows][2] = {}, logits[2] = {}, energy = 0.0f;
  for (int first = 0; first < C; first += kTileDepth) {
    block_sync();
#pragma unroll(kRows > 12 ? 2 : 8)  // limited by registers
    for (int e = threadIdx.x; e < kTileDepth * kTileColumns; e += kTileThreads) {
      const auto [k, i] = place_of<kTileDepth, kTileColumns>(e, across);
      float value = 0.0f;
      if (first + k < C && i < count) {
        const T* const at = row_of<const T>(p.x, image, first + k) + (first_pixel + i) * p.x.stride[2];
        value = to_float(*at);
        if (params.energy && lead) energy += steps(at, value, p.x.stride[2], first_pixel + i, L, p.shape.width);
      }
      right[k * kRightPitch + i] = value;
    }
    if (threadIdx.x < kTileDepth) {
      const int c = first + static_cast<int>(threadIdx.x);
      shifts[threadIdx.x] = c < C ? finite_or_zero(to_float(*row_of<const T>(p.x, image, c))) : 0.0f;
      attn[threadIdx.x] = c < C && p.attn ? p.attn[c] : 0.0f;
    }
    if (p.weight) {
#pragma unroll(kRows > 12 ? 2 : 4)
      for (int j = 0; j < kRows; ++j) {  // a warp takes eight neighbouring elements of four rows
        const int run = j * kTileWarps + warp, k = run % 4 * 8 + lane % 8, r = run / 4 * 4 + lane / 8;
        const int q = block * kRows * kTileWarps + r;
        left[k * kLeftPitch<kRows> + r] = q < P && first + k < C ? p.weight[int64_t{q} * C + first + k] : 0.0f;
      }
    }
    block_sync();
    if (lead) find_moments<T>(part, first, C, count, right, shifts);
    if (p.weight) multiply<kRows>(left, right, sum);
    if (p.attn) {
      for (int k = warp; k < kTileDepth; k += kTileWarps) {
        logits[0] += attn[k] * right[k * kRightPitch + lane];
        logits[1] += attn[k] * right[k * kRightPitch + lane + kWarp];
      }
    }
  }
  if (params.energy && lead) {
    energy = sum_over_warps(scratch, warp_sum(energy));
    if (threadIdx.x == 0) *part.energy(0) = energy;
  }
  if (!p.weight) return;

  float share[2] = {1.0f, 1.0f};
  const bool there[2] = {lane < count, lane + kWarp < count};
  if (p.attn) {
    for (int j = 0; j < 2; ++j) logits[j] = sum_over_warps(scratch, logits[j]);
    if (!again) {
      constexpr float kLeast = -3.4e38f;
      float top = there[0] ? logits[0] : kLeast;
      top = warp_max(larger(top, there[1] ? logits[1] : kLeast));
      for (int j = 0; j < 2; ++j) share[j] = there[j] ? exponential(logits[j] - top) : 0.0f;
      const float whole = warp_sum(share[0] + share[1]);
      if (lead && threadIdx.x == 0) {
        part.top(0)[0] = top;
        part.top(0)[1] = whole;
      }
    } else if (block == 0 && warp == 0) {
      for (int j = 0; j < 2; ++j) {
        if (there[j]) params.logits[image * L + first_pixel + lane + j * kWarp] = logits[j];
      }
    }
  }
  const int q = (block * kTileWarps + warp) * kRows;
  uint32_t bits[2] = {};
  float reached[2] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float bias = q + i < P ? p.bias[q + i] : 0.0f;
    const float gradient = again && q + i < P ? params.dpooled[image * P + q + i] : 0.0f;
    float pooled = 0.0f;
    for (int j = 0; j < 2; ++j) {
      float z = sum[i][j] + bias;
      bits[j] |= uint32_t{positive(z)} << i;
      if (z < 0.0f) z = 0.0f;
      if (q + i < P) reached[j] += z * gradient;
      pooled += there[j] ? z * share[j] : 0.0f;
    }
    if (again) continue;
    pooled = warp_sum(pooled);
    if (lane == 0 && q + i < P) part.sums(0)[q + i] = pooled;
  }
  if (p.signs) {
    using Word = typename SignWord<kRows>::Type;
    Word* const at = static_cast<Word*>(p.signs) + ((image * blocks + block) * kTileWarps + warp) * L + first_pixel;
    for (int j = 0; j < 2; ++j) {
      if (there[j]) at[lane + j * kWarp] = static_cast<Word>(bits[j]);
    }
  }
  if (again) {
    for (int j = 0; j < 2; ++j) {
      const float total = sum_over_warps(scratch, reached[j]);
      if (warp == 0 && there[j]) {
        params.reached[(image * blocks + block) * L + first_pixel + lane + j * kWarp] = total;
      }
    }
  }
}

}  // namespace

int project(const Projected& params, void* stream) {
  const InteractionShape& s = params.reduce.shape;
  return for_projection(params.reduce.x.dtype, s.projected, [&](auto zero, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const int64_t row_blocks = params.reduce.weight ? ceil_div(s.projected, kRows * kTileWarps) : 1;
    const int64_t blocks = s.batch * ceil_div(s.pixels(), kTileColumns) * row_blocks;
    if (!fits_grid(blocks)) return kInvalidValue;
    return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, shared_bytes<kRows>(), stream,
                         interaction_project_kernel<decltype(zero), kRows>, params);
  });
}

}  // namespace mtlkit::cuda
