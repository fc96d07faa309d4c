// The projection of a map's tiles, for the forward pass and once more for attention's backward pass.
#pragma once

#include "cuda/interaction/tile.cuh"

namespace mtlkit::cuda {

// What a projection is made for: sums over the tiles, or, where `reached` is given, what attention's gradient reads.
struct Projected {
  InteractionReduce reduce;
  float* parts;  // as InteractionReduceForward has it, null with reached
  bool energy;
  const float* dpooled;  // (B, P), null with parts, as the next two
  float* reached;        // (B, row blocks, L)
  float* logits;         // (B, L)
};

int project(const Projected& params, void* stream);

__device__ inline int pixels_of_tile(int64_t tile, int64_t pixels) {
  const int64_t left = pixels - tile * kTileColumns;
  return static_cast<int>(left < kTileColumns ? left : kTileColumns);
}

// What a channel's moments are taken about: an infinite or missing first pixel must not reach the others.
__device__ inline float finite_or_zero(float x) { return x - x == 0.0f ? x : 0.0f; }

// What the blocks leave of tile t of an image whose first tile is number `first` of all.
class PartialSums {
 public:
  template <typename Params>
  __device__ PartialSums(const Params& params, int64_t first)
      : C_(params.reduce.shape.channels), P_(params.reduce.shape.projected), row_(params.parts + first * width()) {}

  __device__ float* means(int64_t t) const { return row_ + t * width(); }
  __device__ float* squares(int64_t t) const { return means(t) + C_; }
  __device__ float* sums(int64_t t) const { return means(t) + 2 * C_; }
  __device__ float* energy(int64_t t) const { return sums(t) + P_; }
  __device__ float* top(int64_t t) const { return energy(t) + 1; }  // and the sum of exponentials about it

 private:
  __device__ int64_t width() const { return 2 * C_ + P_ + 3; }

  int64_t C_, P_;
  float* row_;
};

}  // namespace mtlkit::cuda
