// Task interaction between its passes: shared by forward and backward.
//
// The vectors are small and the layers many, so a launch does all work that does not depend on results of other blocks.
// Sums have a fixed order. If a warp owns a row or an image, its lanes run along the columns.
#pragma once

#include "cuda/interaction/tile.cuh"

namespace mtlkit::cuda {

inline constexpr float kShortest = 1e-12f;  // lower bound of squared lengths in the cosine
inline constexpr float kNormaliserEps = 1e-8f;
inline constexpr int kMostSignals = 3;

__device__ inline int64_t warp_number() { return int64_t{blockIdx.x} * kTileWarps + threadIdx.x / kWarp; }
inline unsigned blocks_of_warps(int64_t warps) { return static_cast<unsigned>(ceil_div(warps, kTileWarps)); }

// The sum of f(i) over i < count, computed by a warp; bitwise equal in all lanes.
template <typename F>
__device__ inline float lane_sum(int64_t count, F f) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) sum += f(i);
  return warp_sum(sum);
}

// Calls f(i) for this lane's share of i < count.
template <typename F>
__device__ inline void each_of(int64_t count, F f) {
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) f(i);
}

__device__ inline float given(const float* values, int64_t i) { return values ? values[i] : 0.0f; }

// The arguments, and pointers to the parts of `kept`.
struct Level {
  const InteractionGating& p;
  int64_t B, C, P, F, H, Q;
  int signals;
  float *context, *clf_gate;     // (B, F): relu(W_c ctx + b_c), g_c
  float *gain, *seg_gate;        // (B, C): s, g_s
  float *seg_query, *clf_query;  // (B, Q): projected shifts
  float *centre, *slope;         // (F): mean and 1 / deviation

  __device__ __host__ explicit Level(const InteractionGating& g)
      : p(g),
        B(g.shape.batch),
        C(g.shape.channels),
        P(g.shape.projected),
        F(g.shape.features),
        H(g.shape.hidden),
        Q(g.shape.queries),
        signals(g.alignment ? 3 : 2),
        context(g.kept),
        clf_gate(context + B * F),
        gain(clf_gate + B * F),
        seg_gate(gain + B * C),
        seg_query(seg_gate + B * C),
        clf_query(seg_query + B * Q),
        centre(clf_query + B * Q),
        slope(centre + F) {}

  __device__ const float* weight(GatingWeight which) const { return p.weights.data()[which]; }
  __device__ float* signal(int i) const { return p.signals.data()[i]; }

  // The context of image b before the scale of its normalisation, and after.
  __device__ float unit(int64_t b, int64_t j) const { return (context[b * F + j] - centre[j]) * slope[j]; }
  __device__ float normalised(int64_t b, int64_t j) const {
    return unit(b, j) * weight(kNormWeight)[j] + weight(kNormBias)[j];
  }

  // The divisor of signal i: 1 for three signals, else the given normaliser or the mean over the batch. Called by a
  // warp.
  __device__ float divisor(int i) const {
    if (p.alignment) return 1.0f;
    if (p.normaliser) return p.normaliser[i] + kNormaliserEps;
    return lane_sum(B, [&](int64_t b) { return signal(i)[b]; }) / static_cast<float>(B) + kNormaliserEps;
  }

  // UPA's hidden unit h, from the normalised signals.
  __device__ float hidden(int64_t h, const float (&u)[kMostSignals]) const {
    float z = weight(kFc1Bias)[h];
    for (int i = 0; i < signals; ++i) z += weight(kFc1Weight)[h * signals + i] * u[i];
    return z < 0.0f ? 0.0f : z;
  }
};

// 1 / length, from the squared length.
__device__ inline float inverse_length(float square) { return 1.0f / sqrtf(square < kShortest ? kShortest : square); }

}  // namespace mtlkit::cuda
