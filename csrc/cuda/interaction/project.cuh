// The projection of a map's tiles, used by the forward pass and by attention's backward pass.
#pragma once

#include "cuda/interaction/tile.cuh"

namespace mtlkit::cuda {

// The arguments of a projection, which writes sums over the tiles or, if `reached` is given, the inputs of attention's
// gradient.
struct Projected {
  InteractionReduce reduce;
  float* parts;  // as in InteractionReduceForward; null if reached is given
  bool energy;
  const float* dpooled;  // (B, P), null if parts is given, like the next two
  float* reached;        // (B, row blocks, L)
  float* logits;         // (B, L)
};

int project(const Projected& params, void* stream);

__device__ inline int pixels_of_tile(int64_t tile, int64_t pixels) {
  const int64_t left = pixels - tile * kTileColumns;
  return static_cast<int>(left < kTileColumns ? left : kTileColumns);
}

// The shift of a channel's moments: the first pixel, or 0 if it is not finite, so that inf or NaN does not spread.
__device__ inline float finite_or_zero(float x) { return x - x == 0.0f ? x : 0.0f; }

// The partial sums of tile t of an image; `first` is the index of the image's first tile among all tiles.
class PartialSums {
 public:
  template <typename Params>
  __device__ PartialSums(const Params& params, int64_t first)
      : C_(params.reduce.shape.channels), P_(params.reduce.shape.projected), row_(params.parts + first * width()) {}

  __device__ float* means(int64_t t) const { return row_ + t * width(); }
  __device__ float* squares(int64_t t) const { return means(t) + C_; }
  __device__ float* sums(int64_t t) const { return means(t) + 2 * C_; }
  __device__ float* energy(int64_t t) const { return sums(t) + P_; }
  __device__ float* top(int64_t t) const { return energy(t) + 1; }  // then the sum of exponentials relative to it

 private:
  __device__ int64_t width() const { return 2 * C_ + P_ + 3; }

  int64_t C_, P_;
  float* row_;
};

}  // namespace mtlkit::cuda
