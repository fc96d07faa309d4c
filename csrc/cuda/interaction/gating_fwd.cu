// Task interaction: from the sums over a map to the factors of its channels (formulas: mtlkit/operators/interaction).
#include "cuda/interaction/gating.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

constexpr int kImages = 4;  // that a warp processes together in a layer

// A warp computes one row of a layer: calls f(b, y) for each image, with y = weight x(b) + bias.
template <typename X, typename F>
__device__ inline void linear(int64_t images, int64_t columns, const float* weight, const float* bias, int64_t row, X x,
                              F f) {
  const float* const w = weight + row * columns;
  for (int64_t first = 0; first < images; first += kImages) {
    float sum[kImages] = {};
    for (int64_t k = threadIdx.x % kWarp; k < columns; k += kWarp) {
      for (int i = 0; i < kImages; ++i) sum[i] += first + i < images ? w[k] * x(first + i, k) : 0.0f;
    }
    for (int i = 0; i < kImages; ++i) {
      const float y = warp_sum(sum[i]) + given(bias, row);
      if (first + i < images) f(first + i, y);
    }
  }
}

// Rows of the context and their batch normalisation, and rows of the two gates whose product gives mu.
__global__ void __launch_bounds__(kTileThreads) interaction_rows_fwd_kernel(const InteractionGatingForward params) {
  const InteractionGating& p = params.gating;
  const Level v(p);
  const int lane = threadIdx.x % kWarp;
  const int64_t j = warp_number(), c = j - v.F;
  if (j >= v.F + v.C) return;
  if (j >= v.F) {
    linear(
        v.B, v.F, v.weight(kGainWeight), v.weight(kGainBias), c, [&](int64_t b, int64_t k) { return p.f[b * v.F + k]; },
        [&](int64_t b, float y) {
          if (b % kWarp == lane) v.gain[b * v.C + c] = sigmoid(y);
        });
    linear(
        v.B, v.C, v.weight(kSegGateWeight), v.weight(kSegGateBias), c,
        [&](int64_t b, int64_t k) { return p.mean[b * v.C + k]; },
        [&](int64_t b, float y) {
          if (b % kWarp != lane) return;
          const int64_t i = b * v.C + c;
          v.seg_gate[i] = sigmoid(y);
          p.mu[i] = 1.0f + p.tau * v.seg_gate[i] * v.gain[i];
        });
    return;
  }
  // each lane later reads only the images that it wrote itself
  linear(
      v.B, v.P, v.weight(kContextWeight), v.weight(kContextBias), j,
      [&](int64_t b, int64_t k) { return p.pooled[b * v.P + k]; },
      [&](int64_t b, float y) {
        if (b % kWarp == lane) v.context[b * v.F + j] = y < 0.0f ? 0.0f : y;
      });
  float mean = p.norm_mean[j], variance = p.norm_var[j];
  if (p.training) {
    const float images = static_cast<float>(v.B);
    const float own = lane_sum(v.B, [&](int64_t b) { return v.context[b * v.F + j]; }) / images;
    const float square = lane_sum(v.B, [&](int64_t b) {
      const float d = v.context[b * v.F + j] - own;
      return d * d;
    });
    if (lane == 0) {
      p.norm_mean[j] = mean + p.momentum * (own - mean);
      p.norm_var[j] = variance + p.momentum * (square / (images - 1.0f) - variance);
    }
    mean = own;
    variance = square / images;
  }
  const float slope = 1.0f / sqrtf(variance + p.eps);
  if (lane == 0) {
    v.centre[j] = mean;
    v.slope[j] = slope;
  }
  each_of(v.B, [&](int64_t b) {
    const float unit = (v.context[b * v.F + j] - mean) * slope;
    params.normalised[b * v.F + j] = unit * v.weight(kNormWeight)[j] + v.weight(kNormBias)[j];
  });
}

// Rows of the vector's gate and of the enhanced vector.
__global__ void __launch_bounds__(kTileThreads) interaction_gate_fwd_kernel(const InteractionGatingForward params) {
  const InteractionGating& p = params.gating;
  const Level v(p);
  const int64_t j = warp_number();
  if (j >= v.F) return;
  linear(
      v.B, v.F, v.weight(kClfGateWeight), v.weight(kClfGateBias), j,
      [&](int64_t b, int64_t k) { return params.normalised[b * v.F + k]; },
      [&](int64_t b, float y) {
        if (b % kWarp != threadIdx.x % kWarp) return;
        const int64_t i = b * v.F + j;
        v.clf_gate[i] = sigmoid(y);
        p.enhanced[i] = p.f[i] + v.clf_gate[i] * params.normalised[i];
      });
}

// Rows of the projected shifts of map and vector.
__global__ void __launch_bounds__(kTileThreads) interaction_queries_fwd_kernel(const InteractionGatingForward params) {
  const InteractionGating& p = params.gating;
  const Level v(p);
  const int64_t q = warp_number();
  if (q >= v.Q) return;
  const auto to = [&](float* query) {
    return [=](int64_t b, float y) {
      if (b % kWarp == threadIdx.x % kWarp) query[b * v.Q + q] = y;
    };
  };
  linear(
      v.B, v.C, v.weight(kSegProj), nullptr, q,
      [&](int64_t b, int64_t k) { return (p.mu[b * v.C + k] - 1.0f) * p.mean[b * v.C + k]; }, to(v.seg_query));
  linear(
      v.B, v.F, v.weight(kClfProj), nullptr, q,
      [&](int64_t b, int64_t k) { return p.enhanced[b * v.F + k] - p.f[b * v.F + k]; }, to(v.clf_query));
}

// The signals; one image per warp.
__global__ void __launch_bounds__(kTileThreads) interaction_signals_fwd_kernel(const InteractionGatingForward params) {
  const InteractionGating& p = params.gating;
  const Level v(p);
  const int64_t b = warp_number();
  if (b >= v.B) return;
  const bool lead = threadIdx.x % kWarp == 0;
  const float features = static_cast<float>(v.F);
  const float* const e = p.enhanced + b * v.F;
  const float mean = lane_sum(v.F, [&](int64_t j) { return e[j]; }) / features;
  const float spread = lane_sum(v.F, [&](int64_t j) { return (e[j] - mean) * (e[j] - mean); }) / features;
  if (p.alignment) {
    const float *const seg = v.seg_query + b * v.Q, *const clf = v.clf_query + b * v.Q;
    const float product = lane_sum(v.Q, [&](int64_t k) { return seg[k] * clf[k]; });
    const float seg_inverse = inverse_length(lane_sum(v.Q, [&](int64_t k) { return seg[k] * seg[k]; }));
    const float clf_inverse = inverse_length(lane_sum(v.Q, [&](int64_t k) { return clf[k] * clf[k]; }));
    if (!lead) return;
    v.signal(0)[b] = product * seg_inverse * clf_inverse;
    v.signal(1)[b] = p.energy[b];
    v.signal(2)[b] = log1pf(spread);
    return;
  }
  const float variance =
      lane_sum(v.C, [&](int64_t c) { return p.mu[b * v.C + c] * p.mu[b * v.C + c] * p.variance[b * v.C + c]; });
  if (!lead) return;
  v.signal(0)[b] = variance / static_cast<float>(v.C);
  v.signal(1)[b] = spread;
}

// Gates, factors and final vector; one image per warp.
__global__ void __launch_bounds__(kTileThreads) interaction_factors_fwd_kernel(const InteractionGatingForward params) {
  const InteractionGating& p = params.gating;
  const Level v(p);
  const int64_t b = warp_number();
  if (b >= v.B) return;
  float u[kMostSignals] = {}, z[2], w[2];
  for (int i = 0; i < v.signals; ++i) u[i] = v.signal(i)[b] / v.divisor(i);
  for (int i = 0; i < 2; ++i) {
    z[i] = v.weight(kFc2Bias)[i] +
           lane_sum(v.H, [&](int64_t h) { return v.weight(kFc2Weight)[i * v.H + h] * v.hidden(h, u); });
  }
  for (int i = 0; i < 2; ++i) w[i] = sigmoid(p.alignment ? z[i] : z[i] - z[1 - i]);  // softmax over two logits
  if (threadIdx.x % kWarp < 2) p.gates[2 * b + threadIdx.x % kWarp] = w[threadIdx.x % kWarp];
  each_of(v.C, [&](int64_t c) { params.factors[b * v.C + c] = 1.0f + w[0] * (p.mu[b * v.C + c] - 1.0f); });
  each_of(v.F, [&](int64_t j) {
    const int64_t i = b * v.F + j;
    params.clf[i] = p.f[i] + w[1] * (p.enhanced[i] - p.f[i]);
  });
}

}  // namespace

int launch_interaction_gating_fwd(const InteractionGatingForward& params, void* stream) {
  const GatingShape& s = params.gating.shape;
  if (s.batch == 0) return kSuccess;
  const auto launch = [&](auto kernel, int64_t warps) {
    return launch_kernel(blocks_of_warps(warps), kTileThreads, 0, stream, kernel, params);
  };
  int status = launch(interaction_rows_fwd_kernel, s.features + s.channels);
  if (status == kSuccess) status = launch(interaction_gate_fwd_kernel, s.features);
  if (status == kSuccess && params.gating.alignment) status = launch(interaction_queries_fwd_kernel, s.queries);
  if (status == kSuccess) status = launch(interaction_signals_fwd_kernel, s.batch);
  if (status == kSuccess) status = launch(interaction_factors_fwd_kernel, s.batch);
  return status;
}

}  // namespace mtlkit::cuda
