// Task interaction: the gradients of the factors, gates and vectors (formulas: mtlkit/operators/interaction).
#include <algorithm>

#include "cuda/interaction/gating.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

constexpr int kImages = kTileWarps;  // that a block processes together in a layer

// A level with pointers to the scratch memory of the backward pass.
struct Pulled : Level {
  const InteractionGatingBackward& q;
  float *dlogits, *dsignals;       // (B, 2); (3, B), of the normalised signals
  float *dmu, *dgain, *dseg;       // (B, C): of mu, and of its two gates before the sigmoid
  float *denhanced, *df, *dclf;    // (B, F): of enhanced and base vector, and of the vector's gate before the sigmoid
  float *dcontext, *normal;        // (B, F): the gradient before the ReLU; the normalised context (not a gradient)
  float *seg_shift, *clf_shift;    // (B, C), (B, F): the inputs of the queries' projections
  float *dseg_query, *dclf_query;  // (B, Q)

  __device__ explicit Pulled(const InteractionGatingBackward& g) : Level(g.gating), q(g) {
    float* left = g.scratch;
    const auto next = [&](int64_t size) {
      float* const piece = left;
      left += size;
      return piece;
    };
    dlogits = next(2 * B), dsignals = next(kMostSignals * B);
    dmu = next(B * C), dgain = next(B * C), dseg = next(B * C), seg_shift = next(B * C);
    denhanced = next(B * F), df = next(B * F), dclf = next(B * F);
    dcontext = next(B * F), normal = next(B * F), clf_shift = next(B * F);
    dseg_query = next(B * Q), dclf_query = next(B * Q);
  }

  __device__ float* dweight(GatingWeight which) const { return q.dweights.data()[which]; }

  // Given the complete gradient of mu, writes those of its two gates.
  __device__ void pull_mu(int64_t i, float d) const {
    const float s = gain[i], g = seg_gate[i], both = d * p.tau * s * g;
    dgain[i] = both * (1.0f - s);
    dseg[i] = both * (1.0f - g);
  }

  // Given the complete gradient of the enhanced vector, writes those of the base vector and of the vector's gate.
  __device__ void pull_enhanced(int64_t b, int64_t j, float d, float base) const {
    const int64_t i = b * F + j;
    const float c = normalised(b, j), g = clf_gate[i];
    denhanced[i] = d;
    df[i] = base + d;
    normal[i] = c;
    dclf[i] = d * c * g * (1.0f - g);
  }
};

// Gradients of the two logits and the normalised signals; one image per warp.
__global__ void __launch_bounds__(kTileThreads) interaction_gates_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const int64_t b = warp_number();
  if (b >= v.B) return;
  float u[kMostSignals] = {}, dw[2], dz[2], w[2];
  for (int i = 0; i < v.signals; ++i) u[i] = v.signal(i)[b] / v.divisor(i);
  dw[0] = lane_sum(v.C, [&](int64_t c) { return given(v.q.dfactors, b * v.C + c) * (v.p.mu[b * v.C + c] - 1.0f); });
  dw[1] = lane_sum(
      v.F, [&](int64_t j) { return given(v.q.dclf, b * v.F + j) * (v.p.enhanced[b * v.F + j] - v.p.f[b * v.F + j]); });
  for (int i = 0; i < 2; ++i) {
    w[i] = v.p.gates[2 * b + i];
    dw[i] += given(v.q.dgates, 2 * b + i);
  }
  const float both = w[0] * dw[0] + w[1] * dw[1];
  for (int i = 0; i < 2; ++i) dz[i] = w[i] * (v.p.alignment ? (1.0f - w[i]) * dw[i] : dw[i] - both);
  const bool lead = threadIdx.x % kWarp == 0;
  for (int i = 0; i < v.signals; ++i) {
    const float d = lane_sum(v.H, [&](int64_t h) {
      const float unit = v.weight(kFc2Weight)[h] * dz[0] + v.weight(kFc2Weight)[v.H + h] * dz[1];
      return v.hidden(h, u) <= 0.0f ? 0.0f : v.weight(kFc1Weight)[h * v.signals + i] * unit;
    });
    if (lead) v.dsignals[i * v.B + b] = d;
  }
  if (!lead) return;
  for (int i = 0; i < 2; ++i) v.dlogits[2 * b + i] = dz[i];
}

// Gradients of mu, enhanced and base vector, and queries, from the signals and outputs only; one image per warp.
__global__ void __launch_bounds__(kTileThreads) interaction_signals_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const InteractionGating& p = v.p;
  const int64_t b = warp_number();
  if (b >= v.B) return;
  float d[kMostSignals] = {};
  for (int i = 0; i < v.signals; ++i) {
    const float divisor = v.divisor(i);
    float coupled = 0.0f;
    if (!p.alignment && !p.normaliser) {
      coupled = lane_sum(v.B, [&](int64_t k) { return v.dsignals[i * v.B + k] * v.signal(i)[k]; });
      coupled /= divisor * divisor * static_cast<float>(v.B);
    }
    d[i] = v.dsignals[i * v.B + b] / divisor - coupled + given(params.dsignals.data()[i], b);
  }
  float dspread = d[1];
  if (p.alignment) {
    dspread = d[2] * exponential(-v.signal(2)[b]);
    if (params.denergy && threadIdx.x % kWarp == 0) params.denergy[b] = d[1];
    // gradients of the cosine (s . c) / (|s| |c|)
    const float *const s = v.seg_query + b * v.Q, *const c = v.clf_query + b * v.Q;
    const float s_square = lane_sum(v.Q, [&](int64_t k) { return s[k] * s[k]; });
    const float c_square = lane_sum(v.Q, [&](int64_t k) { return c[k] * c[k]; });
    const float product = lane_sum(v.Q, [&](int64_t k) { return s[k] * c[k]; });
    const float s_inverse = inverse_length(s_square), c_inverse = inverse_length(c_square);
    const float s_along = s_square < kShortest ? 0.0f : product * s_inverse * s_inverse;
    const float c_along = c_square < kShortest ? 0.0f : product * c_inverse * c_inverse;
    each_of(v.Q, [&](int64_t k) {
      v.dseg_query[b * v.Q + k] = d[0] * s_inverse * c_inverse * (c[k] - s_along * s[k]);
      v.dclf_query[b * v.Q + k] = d[0] * s_inverse * c_inverse * (s[k] - c_along * c[k]);
    });
  }
  const float w_seg = p.gates[2 * b], w_clf = p.gates[2 * b + 1];
  const float features = static_cast<float>(v.F), channels = static_cast<float>(v.C);
  const float* const e = p.enhanced + b * v.F;
  const float mean = lane_sum(v.F, [&](int64_t j) { return e[j]; }) / features;
  each_of(v.F, [&](int64_t j) {
    const int64_t i = b * v.F + j;
    const float dclf = given(params.dclf, i);
    const float de = dspread * 2.0f * (e[j] - mean) / features + given(params.denhanced, i) + dclf * w_clf;
    v.clf_shift[i] = e[j] - p.f[i];
    v.pull_enhanced(b, j, de, dclf * (1.0f - w_clf));
  });
  each_of(v.C, [&](int64_t c) {
    const int64_t i = b * v.C + c;
    const float mu = p.mu[i];
    float dmu = given(params.dmu, i) + given(params.dfactors, i) * w_seg;
    if (!p.alignment) {
      dmu += d[0] * 2.0f * mu * p.variance[i] / channels;
      if (params.dvariance) params.dvariance[i] = d[0] * mu * mu / channels;
    }
    v.seg_shift[i] = (mu - 1.0f) * p.mean[i];
    v.dmu[i] = dmu;
    v.pull_mu(i, dmu);
  });
}

// The gradient of the input of a layer of R rows and N columns: the sum over rows r of dy[b, r] weight[r, n], where b
// is `first` plus the thread's warp and n the lane's column. All threads of a block must call it.
__device__ inline float pull(const float* dy, const float* weight, int64_t first, int64_t images, int64_t n, int64_t R,
                             int64_t N) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* const parts = reinterpret_cast<float*>(dynamic_shared());  // (warps, images, lanes)
  float sum[kImages] = {};
#pragma unroll 4
  for (int64_t r = warp; r < R; r += kTileWarps) {
    const float w = n < N ? weight[r * N + n] : 0.0f;
    for (int i = 0; i < kImages; ++i) sum[i] += first + i < images ? dy[(first + i) * R + r] * w : 0.0f;
  }
  for (int i = 0; i < kImages; ++i) parts[(warp * kImages + i) * kWarp + lane] = sum[i];
  block_sync();
  float total = 0.0f;
  for (int other = 0; other < kTileWarps; ++other) total += parts[(other * kImages + warp) * kWarp + lane];
  block_sync();
  return total;
}

constexpr unsigned kPullBytes = kTileWarps * kImages * kWarp * sizeof(float);

// The columns, of one of up to three layers, and the images that a block computes with `pull`.
struct Columns {
  int layer;
  int64_t n, first;  // first: the first image

  __device__ Columns(int64_t images, int64_t one, int64_t two) : layer(0) {
    const unsigned groups = static_cast<unsigned>(ceil_div(images, kImages));
    unsigned block = blockIdx.x / groups;
    first = int64_t{blockIdx.x % groups} * kImages;
    const unsigned ones = static_cast<unsigned>(ceil_div(one, kWarp)),
                   twos = static_cast<unsigned>(ceil_div(two, kWarp));
    if (block >= ones) {
      block -= ones;
      layer = 1;
      if (block >= twos) {
        block -= twos;
        layer = 2;
      }
    }
    n = int64_t{block} * kWarp + threadIdx.x % kWarp;
  }
};

int64_t column_blocks(int64_t images, int64_t columns) { return ceil_div(images, kImages) * ceil_div(columns, kWarp); }

// With three signals: adds the gradients through the two query projections to those of mu, mean and vectors.
__global__ void __launch_bounds__(kTileThreads, 2)
    interaction_queries_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const Columns at(v.B, v.C, v.F);
  const int64_t b = at.first + threadIdx.x / kWarp, n = at.n;
  const bool seg = at.layer == 0;
  const int64_t N = seg ? v.C : v.F;
  const float d =
      pull(seg ? v.dseg_query : v.dclf_query, v.weight(seg ? kSegProj : kClfProj), at.first, v.B, n, v.Q, N);
  if (b >= v.B || n >= N) return;
  const int64_t i = b * N + n;
  if (seg) {
    v.pull_mu(i, v.dmu[i] + d * v.p.mean[i]);
    if (params.dmean) params.dmean[i] = d * (v.p.mu[i] - 1.0f);
  } else {
    const float before = v.denhanced[i];
    v.pull_enhanced(b, n, before + d, v.df[i] - before - d);
  }
}

// Columns of the vector's gate, then the gradient through the batch normalisation to the context before its ReLU.
__global__ void __launch_bounds__(kTileThreads) interaction_gate_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const int64_t j = int64_t{blockIdx.x} * kWarp + threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  float* const scratch = reinterpret_cast<float*>(dynamic_shared());
  float sum = 0.0f, along = 0.0f;
  for (int64_t first = 0; first < v.B; first += kImages) {
    float d = pull(v.dclf, v.weight(kClfGateWeight), first, v.B, j, v.F, v.F);
    const int64_t b = first + warp;
    if (b >= v.B || j >= v.F) continue;
    d += v.denhanced[b * v.F + j] * v.clf_gate[b * v.F + j];
    v.dcontext[b * v.F + j] = d;
    sum += d;
    along += d * v.unit(b, j);
  }
  sum = sum_over_warps(scratch, sum);
  along = sum_over_warps(scratch, along);
  if (j >= v.F) return;
  if (warp == 0) {
    if (float* const d = v.dweight(kNormWeight)) d[j] = along;
    if (float* const d = v.dweight(kNormBias)) d[j] = sum;
  }
  for (int64_t b = warp; b < v.B; b += kImages) {  // the images that this thread wrote
    float d = v.dcontext[b * v.F + j];
    if (v.p.training) d -= (sum + along * v.unit(b, j)) / static_cast<float>(v.B);
    d *= v.weight(kNormWeight)[j] * v.slope[j];
    v.dcontext[b * v.F + j] = v.context[b * v.F + j] <= 0.0f ? 0.0f : d;
  }
}

// Columns of the layers of the context, the gain and the map's gate.
__global__ void __launch_bounds__(kTileThreads, 2) interaction_rows_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const Columns at(v.B, v.P, v.F);
  const int64_t b = at.first + threadIdx.x / kWarp, n = at.n;
  const int64_t N = at.layer == 0 ? v.P : at.layer == 1 ? v.F : v.C, R = at.layer == 0 ? v.F : v.C;
  const float* const dy = at.layer == 0 ? v.dcontext : at.layer == 1 ? v.dgain : v.dseg;
  const GatingWeight weight = at.layer == 0 ? kContextWeight : at.layer == 1 ? kGainWeight : kSegGateWeight;
  const float d = pull(dy, v.weight(weight), at.first, v.B, n, R, N);
  if (b >= v.B || n >= N) return;
  const int64_t i = b * N + n;
  if (at.layer == 0) {
    if (params.dpooled) params.dpooled[i] = d;
  } else if (at.layer == 1) {
    if (params.df) params.df[i] = v.df[i] + d;
  } else if (params.dmean) {
    params.dmean[i] = v.p.alignment ? params.dmean[i] + d : d;
  }
}

// The parameter gradients of a layer: dweight is the product of dy and x, dbias the sum of dy, over the images.
struct Layer {
  const float *dy, *x;  // (B, R), (B, N)
  float *dweight, *dbias;
  int64_t R, N;
};

// One thread per element of the parameters, in the order of the weights, without those of the normalisation.
__global__ void __launch_bounds__(kTileThreads) interaction_learnt_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  int64_t index = int64_t{blockIdx.x} * kTileThreads + threadIdx.x;
  const auto d = [&](GatingWeight which) { return v.dweight(which); };
  const Layer layers[] = {
      {v.dcontext, v.p.pooled, d(kContextWeight), d(kContextBias), v.F, v.P},
      {v.dclf, v.normal, d(kClfGateWeight), d(kClfGateBias), v.F, v.F},
      {v.dgain, v.p.f, d(kGainWeight), d(kGainBias), v.C, v.F},
      {v.dseg, v.p.mean, d(kSegGateWeight), d(kSegGateBias), v.C, v.C},
      {v.dseg_query, v.seg_shift, d(kSegProj), nullptr, v.Q, v.C},
      {v.dclf_query, v.clf_shift, d(kClfProj), nullptr, v.Q, v.F},
  };
#pragma unroll
  for (const Layer& layer : layers) {
    const int64_t size = layer.R * layer.N;
    if (index >= 0 && index < size + layer.R) {
      const bool of_weight = index < size;
      float* const to = of_weight ? layer.dweight : layer.dbias;
      const int64_t r = of_weight ? index / layer.N : index - size, n = index % layer.N;
      float sum = 0.0f;
      if (to) {
        for (int64_t b = 0; b < v.B; ++b)
          sum += layer.dy[b * layer.R + r] * (of_weight ? layer.x[b * layer.N + n] : 1.0f);
        to[of_weight ? index : r] = sum;
      }
    }
    index -= size + layer.R;
  }
}

// UPA's two layers: one warp per hidden unit, with its lanes along the images, and one warp for the last biases.
__global__ void __launch_bounds__(kTileThreads) interaction_upa_bwd_kernel(const InteractionGatingBackward params) {
  const Pulled v(params);
  const int64_t h = warp_number();
  if (h > v.H) return;
  const bool lead = threadIdx.x % kWarp == 0, last = h == v.H;
  float divisor[kMostSignals];
  for (int i = 0; i < v.signals; ++i) divisor[i] = v.divisor(i);
  float own[2] = {}, bias = 0.0f, weight[kMostSignals] = {};
  for (int64_t b = threadIdx.x % kWarp; b < v.B; b += kWarp) {
    const float* const dz = v.dlogits + 2 * b;
    float u[kMostSignals] = {};
    for (int i = 0; i < v.signals; ++i) u[i] = v.signal(i)[b] / divisor[i];
    const float unit = last ? 1.0f : v.hidden(h, u);
    for (int i = 0; i < 2; ++i) own[i] += dz[i] * unit;
    if (last || unit <= 0.0f) continue;
    const float d = v.weight(kFc2Weight)[h] * dz[0] + v.weight(kFc2Weight)[v.H + h] * dz[1];
    bias += d;
    for (int i = 0; i < v.signals; ++i) weight[i] += d * u[i];
  }
  for (int i = 0; i < 2; ++i) {
    const float sum = warp_sum(own[i]);
    float* const to = v.dweight(last ? kFc2Bias : kFc2Weight);
    if (lead && to) to[last ? i : i * v.H + h] = sum;
  }
  if (last) return;
  bias = warp_sum(bias);
  if (float* const to = v.dweight(kFc1Bias); to && lead) to[h] = bias;
  for (int i = 0; i < v.signals; ++i) {
    const float sum = warp_sum(weight[i]);
    if (float* const to = v.dweight(kFc1Weight); to && lead) to[h * v.signals + i] = sum;
  }
}

}  // namespace

int launch_interaction_gating_bwd(const InteractionGatingBackward& params, void* stream) {
  const GatingShape& s = params.gating.shape;
  if (s.batch == 0) return kSuccess;
  const auto launch = [&](auto kernel, int64_t blocks, unsigned shared_bytes) {
    return launch_kernel(static_cast<unsigned>(blocks), kTileThreads, shared_bytes, stream, kernel, params);
  };
  const auto wanted = [&](int first, int last) {
    return std::any_of(params.dweights.begin() + first, params.dweights.begin() + last, [](float* d) { return d; });
  };
  const int64_t B = s.batch, C = s.channels, F = s.features, P = s.projected, Q = s.queries;
  const int64_t learnt = F * (P + 1) + F * (F + 1) + C * (F + 1) + C * (C + 1) + Q * (C + 1) + Q * (F + 1);
  int status = launch(interaction_gates_bwd_kernel, blocks_of_warps(B), 0);
  if (status == kSuccess) status = launch(interaction_signals_bwd_kernel, blocks_of_warps(B), 0);
  if (status == kSuccess && params.gating.alignment) {
    status = launch(interaction_queries_bwd_kernel, column_blocks(B, C) + column_blocks(B, F), kPullBytes);
  }
  if (status == kSuccess) status = launch(interaction_gate_bwd_kernel, ceil_div(F, kWarp), kPullBytes);
  if (status == kSuccess) {
    const int64_t blocks = column_blocks(B, P) + column_blocks(B, F) + column_blocks(B, C);
    status = launch(interaction_rows_bwd_kernel, blocks, kPullBytes);
  }
  if (status == kSuccess && (wanted(kContextWeight, kNormWeight) || wanted(kSegProj, kGatingWeights))) {
    status = launch(interaction_learnt_bwd_kernel, ceil_div(learnt, kTileThreads), 0);
  }
  if (status == kSuccess && wanted(kFc1Weight, kSegProj)) {
    status = launch(interaction_upa_bwd_kernel, blocks_of_warps(s.hidden + 1), 0);
  }
  return status;
}

}  // namespace mtlkit::cuda
