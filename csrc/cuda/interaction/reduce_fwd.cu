// Task interaction: the sums over a map, computed in one pass that reads it once.
//
// A block owns a tile of 64 pixels of one image, all channels, and a block of rows of the projection; the projected map
// is summed over the tile's pixels and never written. Each block writes partial sums, which a second kernel adds in a
// fixed order. Moments are computed about each channel's first pixel and combined over tiles as in Chan et al.
#include "cuda/interaction/project.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

// Sums over an image's tiles: 32 channels per block; the tiles are distributed over its warps.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) interaction_combine_kernel(const InteractionReduceForward params) {
  const InteractionReduce& p = params.reduce;
  const int64_t C = p.shape.channels, P = p.shape.projected, L = p.shape.pixels();
  const int64_t tiles = ceil_div(L, kTileColumns), blocks = ceil_div(C > P ? C : P, kWarp);
  const int64_t image = blockIdx.x / blocks, c = blockIdx.x % blocks * kWarp + threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  float* const scratch = reinterpret_cast<float*>(dynamic_shared());
  const PartialSums part(params, image * tiles);

  float about = 0.0f;
  for (int64_t t = warp; t < tiles; t += kTileWarps) {
    if (c < C) about += part.means(t)[c] * static_cast<float>(pixels_of_tile(t, L));
  }
  about = sum_over_warps(scratch, about) / static_cast<float>(L);
  float square = 0.0f;
  for (int64_t t = warp; t < tiles; t += kTileWarps) {
    if (c >= C) continue;
    const float d = part.means(t)[c] - about;
    square += part.squares(t)[c] + d * d * static_cast<float>(pixels_of_tile(t, L));
  }
  square = sum_over_warps(scratch, square);
  if (warp == 0 && c < C) {
    p.mean[image * C + c] = finite_or_zero(to_float(*row_of<const T>(p.x, image, c))) + about;
    params.variance[image * C + c] = square / static_cast<float>(L);
  }

  const bool lead = blockIdx.x % blocks == 0 && threadIdx.x == 0;
  if (params.energy) {
    float energy = 0.0f;
    for (int64_t t = threadIdx.x; t < tiles; t += kTileThreads) energy += *part.energy(t);
    energy = sum_over_warps(scratch, warp_sum(energy));
    if (lead) params.energy[image] = energy / (static_cast<float>(C) * static_cast<float>(L));
  }
  if (!p.weight) return;
  float whole = static_cast<float>(L), top = 0.0f;
  if (p.attn) {
    top = part.top(0)[0];
    for (int64_t t = threadIdx.x; t < tiles; t += kTileThreads) top = larger(top, part.top(t)[0]);
    top = max_over_warps(scratch, warp_max(top));
    whole = 0.0f;
    for (int64_t t = threadIdx.x; t < tiles; t += kTileThreads)
      whole += exponential(part.top(t)[0] - top) * part.top(t)[1];
    whole = sum_over_warps(scratch, warp_sum(whole));
    if (lead) {
      p.softmax[2 * image] = top;
      p.softmax[2 * image + 1] = whole;
    }
  }
  float total = 0.0f;
  for (int64_t t = warp; t < tiles; t += kTileWarps) {
    if (c < P) total += part.sums(t)[c] * (p.attn ? exponential(part.top(t)[0] - top) : 1.0f);
  }
  total = sum_over_warps(scratch, total);
  if (warp == 0 && c < P) p.pooled[image * P + c] = total / whole;
}

}  // namespace

int launch_interaction_reduce_fwd(const InteractionReduceForward& params, void* stream) {
  const InteractionShape& s = params.reduce.shape;
  if (s.batch == 0) return kSuccess;
  const Projected projected{params.reduce, params.parts, params.energy != nullptr, nullptr, nullptr, nullptr};
  const int status = project(projected, stream);
  if (status != kSuccess) return status;
  const int64_t blocks = s.batch * ceil_div(std::max(s.channels, s.projected), kWarp);
  if (!fits_grid(blocks)) return kInvalidValue;
  return for_dtype(params.reduce.x.dtype, [&](auto zero) {
    return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, kTileThreads * sizeof(float), stream,
                         interaction_combine_kernel<decltype(zero)>, params);
  });
}

}  // namespace mtlkit::cuda
