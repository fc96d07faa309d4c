// Task interaction: a map times a factor for each channel, and the gradient of the factors.
#include "cuda/interaction/tile.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

constexpr int kPack = 4, kPacks = 4;  // contiguous elements in a pack, packs per thread

template <int kCount>
bool packs(const Tensor<3>& t, bool across, int64_t size) {
  const int64_t other = across ? t.stride[2] : t.stride[1];
  return size % kCount == 0 && t.stride[across ? 1 : 2] == 1 && t.stride[0] % kCount == 0 && other % kCount == 0 &&
         reinterpret_cast<uintptr_t>(t.data) % (kCount * size_of(t.dtype)) == 0;
}

// The contiguous lines of a map; `across`: lines run along the channels.
struct Lines {
  bool across;
  int64_t packs, lines;  // packs per line, lines per image

  static Lines of(const InteractionShape& s, const Tensor<3>& x, int count) {
    const int64_t pixels = s.pixels();
    const bool across = channels_side_by_side(x, pixels);
    return {across, (across ? s.channels : pixels) / count, across ? pixels : s.channels};
  }
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kTileThreads)
    interaction_scale_fwd_kernel(const InteractionScale params, const Lines lines) {
  const int64_t all = lines.packs * lines.lines, blocks = ceil_div(all, kPacks * kTileThreads);
  const int64_t image = blockIdx.x / blocks, first = blockIdx.x % blocks * (kPacks * kTileThreads) + threadIdx.x;
  const float* const factors = params.factors + image * params.shape.channels;
  const auto offset = [&](const Tensor<3>& t, int64_t line, int64_t start) {
    return image * t.stride[0] +
           (lines.across ? start * t.stride[1] + line * t.stride[2] : line * t.stride[1] + start * t.stride[2]);
  };
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int64_t index = first + j * kTileThreads;
    if (index >= all) continue;
    const int64_t line = index / lines.packs, start = index % lines.packs * kCount;
    Pack some = load<kCount>(static_cast<const T*>(params.x.data) + offset(params.x, line, start));
    for (int i = 0; i < kCount; ++i) {
      some.values[i] = from_float<T>(to_float(some.values[i]) * factors[lines.across ? start + i : line]);
    }
    store(static_cast<T*>(params.y.data) + offset(params.y, line, start), some);
  }
}

// The sum of dy x over a chunk of the pixels. For contiguous pixels: a warp owns a channel.
template <typename T, int kCount>
__global__ void __launch_bounds__(kTileThreads) interaction_factors_rows_kernel(const InteractionFactors params) {
  const int64_t C = params.shape.channels, packs = params.shape.pixels() / kCount;
  const int64_t blocks = ceil_div(C, kTileWarps), row = blockIdx.x / blocks;
  const int64_t c = blockIdx.x % blocks * kTileWarps + threadIdx.x / kWarp;
  const int64_t image = row / params.chunks, each = ceil_div(packs, params.chunks), start = row % params.chunks * each;
  if (c >= C) return;
  const T *const x = row_of<const T>(params.x, image, c), *const dy = row_of<const T>(params.dy, image, c);
  float sum = 0.0f;
  const int64_t end = start + each < packs ? start + each : packs;
#pragma unroll 4
  for (int64_t i = start + threadIdx.x % kWarp; i < end; i += kWarp) {
    const Pack a = load<kCount>(x + i * kCount * params.x.stride[2]);
    const Pack b = load<kCount>(dy + i * kCount * params.dy.stride[2]);
    for (int j = 0; j < kCount; ++j) sum += to_float(a.values[j]) * to_float(b.values[j]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) params.parts[row * C + c] = sum;
}

// For contiguous channels: a block owns 16 packs of channels, a thread every 16th pixel.
template <typename T, int kCount>
__global__ void __launch_bounds__(kTileThreads) interaction_factors_columns_kernel(const InteractionFactors params) {
  constexpr int kAbreast = 16, kPixels = kTileThreads / kAbreast;
  const int64_t C = params.shape.channels, L = params.shape.pixels();
  const int64_t blocks = ceil_div(C, kAbreast * kCount), row = blockIdx.x / blocks;
  const int pack = threadIdx.x % kAbreast, turn = threadIdx.x / kAbreast;
  const int64_t c = (blockIdx.x % blocks * kAbreast + pack) * kCount;
  const int64_t image = row / params.chunks, each = ceil_div(L, params.chunks), start = row % params.chunks * each;
  const int64_t end = start + each < L ? start + each : L;
  Pack<float, kCount> sum{};
  if (c < C) {
    const T *const x = row_of<const T>(params.x, image, c), *const dy = row_of<const T>(params.dy, image, c);
#pragma unroll 4
    for (int64_t i = start + turn; i < end; i += kPixels) {
      const Pack a = load<kCount>(x + i * params.x.stride[2]), b = load<kCount>(dy + i * params.dy.stride[2]);
      for (int j = 0; j < kCount; ++j) sum.values[j] += to_float(a.values[j]) * to_float(b.values[j]);
    }
  }
  Pack<float, kCount>* const gathered = reinterpret_cast<Pack<float, kCount>*>(dynamic_shared());
  gathered[threadIdx.x] = sum;
  block_sync();
  if (turn > 0 || c >= C) return;
  for (int other = 1; other < kPixels; ++other) {
    const Pack more = gathered[other * kAbreast + pack];
    for (int j = 0; j < kCount; ++j) sum.values[j] += more.values[j];
  }
  for (int j = 0; j < kCount; ++j) params.parts[row * C + c + j] = sum.values[j];
}

template <typename T, int kCount>
int launch_scale(const InteractionScale& params, void* stream) {
  const Lines lines = Lines::of(params.shape, params.x, kCount);
  const int64_t blocks = params.shape.batch * ceil_div(lines.packs * lines.lines, kPacks * kTileThreads);
  if (!fits_grid(blocks)) return kInvalidValue;
  return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, 0, stream, interaction_scale_fwd_kernel<T, kCount>,
                       params, lines);
}

template <typename T, int kCount>
int launch_factors(const InteractionFactors& params, bool across, void* stream) {
  const int64_t rows = params.shape.batch * params.chunks;
  const int64_t blocks = rows * ceil_div(params.shape.channels, across ? 16 * kCount : kTileWarps);
  if (!fits_grid(blocks)) return kInvalidValue;
  return launch_kernel(
      static_cast<unsigned>(blocks), kTileThreads,
      across ? static_cast<unsigned>(kTileThreads * sizeof(Pack<float, kCount>)) : 0u, stream,
      across ? interaction_factors_columns_kernel<T, kCount> : interaction_factors_rows_kernel<T, kCount>, params);
}

}  // namespace

int launch_interaction_scale(const InteractionScale& params, void* stream) {
  if (params.shape.batch == 0) return kSuccess;
  const bool across = channels_side_by_side(params.x, params.shape.pixels());
  const int64_t size = across ? params.shape.channels : params.shape.pixels();
  const bool vector = packs<kPack>(params.x, across, size) && packs<kPack>(params.y, across, size);
  return for_dtype(params.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    return vector ? launch_scale<T, kPack>(params, stream) : launch_scale<T, 1>(params, stream);
  });
}

int launch_interaction_factors(const InteractionFactors& params, void* stream) {
  if (params.shape.batch == 0) return kSuccess;
  const bool across = channels_side_by_side(params.x, params.shape.pixels());
  const int64_t size = across ? params.shape.channels : params.shape.pixels();
  const bool vector = packs<kPack>(params.x, across, size) && packs<kPack>(params.dy, across, size);
  return for_dtype(params.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    return vector ? launch_factors<T, kPack>(params, across, stream) : launch_factors<T, 1>(params, across, stream);
  });
}

}  // namespace mtlkit::cuda
