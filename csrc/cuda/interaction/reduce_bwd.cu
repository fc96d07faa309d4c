// Task interaction: the backward pass of the sums over a map. The gradient through the projection needs only the
// projection's signs, one bit each. The forward pass saves them; with attention a separate pass computes them.
//
//   m = z > 0, share = 1 / L or the softmax      dz = dpooled m share      dx = W^T dz + ...      dW = dz x^T
//
// Attention: dlogit = share (dpooled . z - dpooled . pooled), which goes to dx by a and to da by x.
#include "cuda/interaction/project.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

constexpr int kMapRows = 8, kMapChannels = kMapRows * kTileWarps;  // a tile of the map's gradient
constexpr unsigned kMapBytes = (kTileFloats<kMapRows> + kTileThreads) * sizeof(float);

template <int kRows>
constexpr unsigned weight_bytes() {
  return (kTileFloats<kRows> + kTileThreads + 2 * kTileDepth) * sizeof(float);
}

// For an image with attention: the shares of its pixels and the gradients of their logits.
struct Attention {
  float top, whole, base;

  // All threads of the block must call it; `scratch` holds a float per thread.
  __device__ static Attention of(const InteractionReduceBackward& params, int64_t image, float* scratch) {
    const InteractionReduce& p = params.reduce;
    float base = 0.0f;  // the softmax backward's sum: dpooled . pooled
    for (int64_t q = threadIdx.x; q < p.shape.projected; q += kTileThreads) {
      base += params.dpooled[image * p.shape.projected + q] * p.pooled[image * p.shape.projected + q];
    }
    base = sum_over_warps(scratch, warp_sum(base));
    return {p.softmax[2 * image], p.softmax[2 * image + 1], base};
  }

  __device__ float share(const InteractionReduceBackward& params, int64_t image, int64_t pixel) const {
    return exponential(params.logits[image * params.reduce.shape.pixels() + pixel] - top) / whole;
  }

  __device__ float dlogit(const InteractionReduceBackward& params, int64_t image, int64_t pixel, int64_t blocks) const {
    float total = 0.0f;
    for (int64_t j = 0; j < blocks; ++j) {
      total += params.reached[(image * blocks + j) * params.reduce.shape.pixels() + pixel];
    }
    return share(params, image, pixel) * (total - base);
  }
};

// Word `index` of the signs: one pixel, and the rows of one warp.
__device__ inline uint32_t sign_word(const void* signs, int bytes, int64_t index) {
  if (bytes == 1) return static_cast<const uint8_t*>(signs)[index];
  if (bytes == 2) return static_cast<const uint16_t*>(signs)[index];
  return static_cast<const uint32_t*>(signs)[index];
}

// The sign of a value's difference from its neighbour.
template <typename T>
__device__ inline float direction(float value, const T* neighbour) {
  const float d = value - to_float(*neighbour);
  return d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : 0.0f;
}

// The gradient of an element through the moments and the energy, plus dy times the factor.
template <typename T>
__device__ inline float through_moments(const InteractionReduceBackward& params, int64_t image, int64_t c, int64_t i) {
  const InteractionReduce& p = params.reduce;
  const int64_t C = p.shape.channels, L = p.shape.pixels(), W = p.shape.width, step = p.x.stride[2];
  const float pixels = static_cast<float>(L);
  const T* const at = row_of<const T>(p.x, image, c) + i * step;
  const float value = to_float(*at);
  float gradient = 0.0f;
  if (params.dvariance) gradient += (value - p.mean[image * C + c]) * (params.dvariance[image * C + c] * 2.0f / pixels);
  if (params.dmean) gradient += params.dmean[image * C + c] / pixels;
  if (params.denergy) {
    float signs = 0.0f;
    if (i % W > 0) signs += direction(value, at - step);
    if (i % W + 1 < W) signs += direction(value, at + step);
    if (i >= W) signs += direction(value, at - W * step);
    if (i + W < L) signs += direction(value, at + W * step);
    gradient += signs * (params.denergy[image] / (static_cast<float>(C) * pixels));
  }
  if (params.dy) {
    gradient += to_float(row_of<const T>(params.dy, image, c)[i * params.dy.stride[2]]) * params.factors[image * C + c];
  }
  return gradient;
}

// Computes a tile of dx, 64 channels by 64 pixels.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2)
    interaction_map_bwd_kernel(const InteractionReduceBackward params, const int warp_rows, const int sign_bytes) {
  const InteractionReduce& p = params.reduce;
  const int64_t C = p.shape.channels, P = params.dpooled ? p.shape.projected : 0, L = p.shape.pixels();
  const int64_t tiles = ceil_div(L, kTileColumns), blocks = ceil_div(C, kMapChannels);
  const int64_t row = blockIdx.x / blocks, image = row / tiles, first_pixel = row % tiles * kTileColumns;
  const int64_t first_channel = blockIdx.x % blocks * kMapChannels;
  const int64_t row_blocks = ceil_div(P, warp_rows * kTileWarps), words = row_blocks * kTileWarps;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* const left = reinterpret_cast<float*>(dynamic_shared());
  float* const right = left + kTileDepth * kLeftPitch<kMapRows>;
  float* const scratch = right + kTileDepth * kRightPitch;

  float sum[kMapRows][2] = {};
  for (int64_t first = 0; first < P; first += kTileDepth) {
    block_sync();
    for (int e = threadIdx.x; e < kTileDepth * kTileColumns; e += kTileThreads) {
      const int k = e / kTileColumns, i = e % kTileColumns;
      const int64_t q = first + k, c = first_channel + i, pixel = first_pixel + i;
      const bool there = q < P && pixel < L;
      const uint32_t word =
          there ? sign_word(p.signs, sign_bytes, (image * words + q / warp_rows) * L + pixel) >> q % warp_rows : 0;
      right[k * kRightPitch + i] = word & 1 ? 1.0f : 0.0f;
      left[k * kLeftPitch<kMapRows> + i] = q < P && c < C ? p.weight[q * C + c] * params.dpooled[image * P + q] : 0.0f;
    }
    block_sync();
    multiply<kMapRows>(left, right, sum);
  }

  if (P > 0) {
    const float pixels = static_cast<float>(L);
    Attention attention{};
    if (p.attn) attention = Attention::of(params, image, scratch);
    for (int j = 0; j < 2; ++j) {
      const int64_t pixel = first_pixel + lane + j * kWarp;
      float scale = 1.0f / pixels, dlogit = 0.0f;
      if (p.attn && pixel < L) {
        scale = attention.share(params, image, pixel);
        dlogit = attention.dlogit(params, image, pixel, row_blocks);
      }
#pragma unroll
      for (int i = 0; i < kMapRows; ++i) {
        const int64_t c = first_channel + warp * kMapRows + i;
        sum[i][j] = sum[i][j] * scale + (p.attn && c < C ? p.attn[c] * dlogit : 0.0f);
      }
    }
  }
  // redistribute through shared memory, so that neighbouring threads store neighbouring elements
  block_sync();
#pragma unroll
  for (int i = 0; i < kMapRows; ++i) {
    for (int j = 0; j < 2; ++j) left[(warp * kMapRows + i) * kRightPitch + lane + j * kWarp] = sum[i][j];
  }
  block_sync();
  for (int e = threadIdx.x; e < kMapChannels * kTileColumns; e += kTileThreads) {
    const auto [k, i] = place_of<kMapChannels, kTileColumns>(e, channels_side_by_side(p.x, L));
    const int64_t c = first_channel + k, pixel = first_pixel + i;
    if (c >= C || pixel >= L) continue;
    const float gradient = left[k * kRightPitch + i] + through_moments<T>(params, image, c, pixel);
    row_of<T>(params.dx, image, c)[pixel * params.dx.stride[2]] = from_float<T>(gradient);
  }
}

// A share's part of the parameter gradients: rows of the projection by 64 channels, summed over runs of 32 pixels.
template <typename T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 2)
    interaction_weight_bwd_kernel(const InteractionReduceBackward params) {
  constexpr int kTileRows = kRows * kTileWarps;
  const InteractionReduce& p = params.reduce;
  const int64_t C = p.shape.channels, P = p.shape.projected, L = p.shape.pixels();
  const int64_t runs = ceil_div(L, kTileDepth), items = p.shape.batch * runs,
                share_items = ceil_div(items, params.shares);
  const int64_t row_blocks = ceil_div(P, kTileRows), column_blocks = ceil_div(C, kTileColumns);
  const int64_t column_block = blockIdx.x % column_blocks, rest = blockIdx.x / column_blocks;
  const int64_t row_block = rest % row_blocks, share = rest / row_blocks;
  const int64_t first_channel = column_block * kTileColumns;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t q = (row_block * kTileWarps + warp) * kRows;  // the warp's first row
  const bool across = channels_side_by_side(p.x, L);
  float* const left = reinterpret_cast<float*>(dynamic_shared());
  float* const right = left + kTileDepth * kLeftPitch<kRows>;
  float* const scratch = right + kTileDepth * kRightPitch;
  float* const dlogits = scratch + kTileThreads;
  using Word = typename SignWord<kRows>::Type;

  float sum[kRows][2] = {}, dbias = 0.0f, dattn = 0.0f;
  Attention attention{};
  int64_t attended = -1;
  const int64_t last = (share + 1) * share_items < items ? (share + 1) * share_items : items;
  for (int64_t item = share * share_items; item < last; ++item) {
    const int64_t image = item / runs, first_pixel = item % runs * kTileDepth, pixel = first_pixel + lane;
    block_sync();
    if (p.attn && image != attended) {
      attention = Attention::of(params, image, scratch);
      attended = image;
    }
    for (int e = threadIdx.x; e < kTileDepth * kTileColumns; e += kTileThreads) {
      const auto [k, i] = place_of<kTileColumns, kTileDepth>(e, across);
      const bool there = first_channel + k < C && first_pixel + i < L;
      right[i * kRightPitch + k] =
          there ? to_float(row_of<const T>(p.x, image, first_channel + k)[(first_pixel + i) * p.x.stride[2]]) : 0.0f;
    }
    const int64_t word = ((image * row_blocks + row_block) * kTileWarps + warp) * L + pixel;
    const uint32_t bits = pixel < L ? static_cast<const Word*>(p.signs)[word] : 0;
    float scale = 1.0f / static_cast<float>(L);
    if (p.attn && pixel < L) scale = attention.share(params, image, pixel);
#pragma unroll
    for (int i = 0; i < kRows; i += 4) {
      Pack<float, 4> four;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float gradient = q + i + j < P ? params.dpooled[image * P + q + i + j] : 0.0f;
        four.values[j] = bits >> (i + j) & 1 ? gradient * scale : 0.0f;
      }
      store(left + lane * kLeftPitch<kRows> + warp * kRows + i, four);
    }
    if (p.attn && warp == 0) dlogits[lane] = pixel < L ? attention.dlogit(params, image, pixel, row_blocks) : 0.0f;
    block_sync();
    multiply<kRows>(left, right, sum);
    if (column_block == 0 && threadIdx.x < kTileRows) {
      for (int k = 0; k < kTileDepth; ++k) dbias += left[k * kLeftPitch<kRows> + threadIdx.x];
    }
    if (p.attn && row_block == 0 && threadIdx.x < kTileColumns) {
      for (int k = 0; k < kTileDepth; ++k) dattn += dlogits[k] * right[k * kRightPitch + threadIdx.x];
    }
  }

  float* const part = params.parts + share * (P * C + P + C);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int64_t c = first_channel + lane + j * kWarp;
      if (q + i < P && c < C) part[(q + i) * C + c] = sum[i][j];
    }
  }
  const int64_t own_row = row_block * kTileRows + threadIdx.x, own_channel = first_channel + threadIdx.x;
  if (column_block == 0 && threadIdx.x < kTileRows && own_row < P) part[P * C + own_row] = dbias;
  if (row_block == 0 && threadIdx.x < kTileColumns && own_channel < C) part[P * C + P + own_channel] = dattn;
}

// Adds the parts, one thread per element.
__global__ void __launch_bounds__(kTileThreads) interaction_sum_kernel(const InteractionReduceBackward params) {
  const int64_t C = params.reduce.shape.channels, P = params.reduce.shape.projected, width = P * C + P + C;
  const int64_t index = int64_t{blockIdx.x} * kTileThreads + threadIdx.x;
  if (index >= width) return;
  float* const to = index < P * C ? params.dweight : index < P * C + P ? params.dbias : params.dattn;
  if (!to) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t share = 0; share < params.shares; ++share) sum += params.parts[share * width + index];
  to[index < P * C ? index : index < P * C + P ? index - P * C : index - P * C - P] = sum;
}

int launch_map(const InteractionReduceBackward& params, void* stream) {
  const InteractionShape& s = params.reduce.shape;
  const int64_t blocks = s.batch * ceil_div(s.pixels(), kTileColumns) * ceil_div(s.channels, kMapChannels);
  if (!fits_grid(blocks)) return kInvalidValue;
  const int bytes = static_cast<int>(plan_interaction(s, 1).sign_bytes), rows = projection_rows(s.projected);
  return for_dtype(params.reduce.x.dtype, [&](auto zero) {
    return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, kMapBytes, stream,
                         interaction_map_bwd_kernel<decltype(zero)>, params, rows, bytes);
  });
}

int launch_weight(const InteractionReduceBackward& params, void* stream) {
  const InteractionShape& s = params.reduce.shape;
  const int status = for_projection(params.reduce.x.dtype, s.projected, [&](auto zero, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const int64_t blocks =
        params.shares * ceil_div(s.projected, kRows * kTileWarps) * ceil_div(s.channels, kTileColumns);
    if (!fits_grid(blocks)) return kInvalidValue;
    return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, weight_bytes<kRows>(), stream,
                         interaction_weight_bwd_kernel<decltype(zero), kRows>, params);
  });
  if (status != kSuccess) return status;
  const int64_t elements = s.projected * s.channels + s.projected + s.channels;
  return launch_kernel(static_cast<unsigned>(ceil_div(elements, kTileThreads)), kTileThreads, 0, stream,
                       interaction_sum_kernel, params);
}

}  // namespace

int launch_interaction_reduce_bwd(const InteractionReduceBackward& params, void* stream) {
  if (params.reduce.shape.batch == 0) return kSuccess;
  int status = kSuccess;
  if (params.dpooled && params.reduce.attn) {
    status = project({params.reduce, nullptr, false, params.dpooled, params.reached, params.logits}, stream);
  }
  if (status == kSuccess && params.dx) status = launch_map(params, stream);
  if (status == kSuccess && params.parts) status = launch_weight(params, stream);
  return status;
}

}  // namespace mtlkit::cuda
