// LayerNorm over the channels, times SiLU(z) if a gate is given: backward. Mean and variance are recomputed.
//
//   n = v weight + bias, v the normalised row      dz = dout n SiLU'(z)       dn = dout SiLU(z)
//   dweight += dn v      dbias += dn               g = dn weight              dx = rstd (g - mean(g) - v mean(g v))
//
// A block processes every gridDim.x-th run of rows and writes its sums for weight and bias to its own row of partials;
// the caller adds the rows in a fixed order.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/launchers.h"
#include "cuda/norm_gate/norm_gate.cuh"

namespace mtlkit::cuda {
namespace {

// Given dout, n and z, returns dn = dout SiLU(z) and writes dz.
__device__ float through_gate(float dout, float n, float z, float* dz) {
  const float s = sigmoid(z);
  *dz = dout * n * s * (1.0f + z * (1.0f - s));
  return dout * z * s;
}

// X: type of x and dx. Y: type of dout, z and dz.
template <typename X, typename Y, int kLanes, int kPacks>
__global__ void __launch_bounds__(kNormGateThreads) norm_gate_bwd_kernel(const NormGateBackward params) {
  constexpr int kRows = kNormGateThreads / kLanes;
  const NormGate& p = params.norm;
  const float per_channel = 1.0f / static_cast<float>(p.shape.channels);
  const int packs = static_cast<int>(p.shape.channels) / kVector, lane = threadIdx.x % kLanes;
  float dweight[kPacks][kVector] = {}, dbias[kPacks][kVector] = {};

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.shape.rows; first += int64_t{gridDim.x} * kRows) {
    const int64_t row = first + threadIdx.x / kLanes;
    const Share<kLanes, kPacks> share{lane, row < p.shape.rows ? packs : 0};
    float v[kPacks][kVector], g[kPacks][kVector];
    load_row<X>(p, row, share, v);
    share.each([&](int j, int c) {
      const Pack dout = load<kVector>(row_of<const Y>(params.dout, row) + c);
      for (int i = 0; i < kVector; ++i) g[j][i] = to_float(dout.values[i]);
    });
    const float rstd = normalise(p, share, v);

    float sum = 0.0f, product = 0.0f;
    share.each([&](int j, int c) {
      const Pack weight = parameters(p.weight, c, 1.0f);
      if (p.z.data) {
        const Pack bias = parameters(p.bias, c, 0.0f);
        const Pack z = load<kVector>(row_of<const Y>(p.z, row) + c);
        Pack<Y, kVector> dz;
        for (int i = 0; i < kVector; ++i) {
          float gradient;
          g[j][i] =
              through_gate(g[j][i], v[j][i] * weight.values[i] + bias.values[i], to_float(z.values[i]), &gradient);
          dz.values[i] = from_float<Y>(gradient);
        }
        store(row_of<Y>(params.dz, row) + c, dz);
      }
      for (int i = 0; i < kVector; ++i) {
        dweight[j][i] += g[j][i] * v[j][i];
        dbias[j][i] += g[j][i];
        g[j][i] *= weight.values[i];
        sum += g[j][i];
        product += g[j][i] * v[j][i];
      }
    });
    const float mean = row_sum<kLanes>(sum) * per_channel, slope = row_sum<kLanes>(product) * per_channel;
    share.each([&](int j, int c) {
      Pack<X, kVector> dx;
      for (int i = 0; i < kVector; ++i) dx.values[i] = from_float<X>(rstd * (g[j][i] - mean - v[j][i] * slope));
      store(row_of<X>(params.dx, row) + c, dx);
    });
  }

  // Each group of lanes stores its sums; then each thread adds over the groups for one channel.
  float* const groups = reinterpret_cast<float*>(dynamic_shared());  // (kRows, D)
  float* const partials = params.partials + int64_t{blockIdx.x} * 2 * p.shape.channels;
  const Share<kLanes, kPacks> share{lane, packs};
  for (int which = 0; which < 2; ++which) {
    share.each([&](int j, int c) {
      Pack<float, kVector> values;
      for (int i = 0; i < kVector; ++i) values.values[i] = which ? dbias[j][i] : dweight[j][i];
      store(groups + static_cast<int>(threadIdx.x / kLanes * p.shape.channels) + c, values);
    });
    block_sync();
    for (int c = threadIdx.x; c < p.shape.channels; c += kNormGateThreads) {
      float sum = 0.0f;
      for (int group = 0; group < kRows; ++group) sum += groups[group * static_cast<int>(p.shape.channels) + c];
      partials[which * p.shape.channels + c] = sum;
    }
    if (which == 0) block_sync();
  }
}

constexpr int kWarps = kNormGateThreads / kWarp;

// The sums of two values over all threads of the block, bitwise equal in all threads. `scratch` holds 2 kWarps floats.
__device__ void block_sums(float* scratch, float* first, float* second) {
  *first = warp_sum(*first);
  *second = warp_sum(*second);
  scratch[threadIdx.x / kWarp] = *first;
  scratch[kWarps + threadIdx.x / kWarp] = *second;
  block_sync();
  *first = *second = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
    *first += scratch[warp];
    *second += scratch[kWarps + warp];
  }
  block_sync();
}

// For any number of channels: a block owns a row, a thread some channels of every row. A thread reads the row again
// from the cache, and accumulates the sums for weight and bias in the block's partials.
template <typename X, typename Y>
__global__ void __launch_bounds__(kNormGateThreads, 2) norm_gate_bwd_any_kernel(const NormGateBackward params) {
  const NormGate& p = params.norm;
  const float per_channel = 1.0f / static_cast<float>(p.shape.channels);
  float* const scratch = reinterpret_cast<float*>(dynamic_shared());
  float* const dweight = params.partials + int64_t{blockIdx.x} * 2 * p.shape.channels;
  float* const dbias = dweight + p.shape.channels;
  for (int64_t c = threadIdx.x; c < p.shape.channels; c += blockDim.x) dweight[c] = dbias[c] = 0.0f;

  for (int64_t row = blockIdx.x; row < p.shape.rows; row += gridDim.x) {
    const X* const x = row_of<const X>(p.x, row);
    const Y* const z = p.z.data ? row_of<const Y>(p.z, row) : nullptr;
    const Y* const dout = row_of<const Y>(params.dout, row);
    const auto value = [&](int64_t c) { return to_float(x[c]); };

    float sum = 0.0f, unused = 0.0f;
    for (int64_t c = threadIdx.x; c < p.shape.channels; c += blockDim.x) sum += value(c);
    block_sums(scratch, &sum, &unused);
    const float mean = sum * per_channel;
    float squares = 0.0f, drift = 0.0f;
    for (int64_t c = threadIdx.x; c < p.shape.channels; c += blockDim.x) {
      const float centred = value(c) - mean;
      squares += centred * centred;
      drift += centred;
    }
    block_sums(scratch, &squares, &drift);
    drift *= per_channel;
    const float rstd = rstd_of(squares * per_channel - drift * drift, p.eps);

    // computes v, n and dn of a channel, and writes dz
    float g_sum = 0.0f, g_product = 0.0f;
    for (int64_t c = threadIdx.x; c < p.shape.channels; c += blockDim.x) {
      const float v = (value(c) - mean - drift) * rstd, weight = p.weight ? p.weight[c] : 1.0f;
      float dn = to_float(dout[c]);
      if (z) {
        float dz;
        dn = through_gate(dn, v * weight + (p.bias ? p.bias[c] : 0.0f), to_float(z[c]), &dz);
        row_of<Y>(params.dz, row)[c] = from_float<Y>(dz);
      }
      dweight[c] += dn * v;
      dbias[c] += dn;
      g_sum += dn * weight;
      g_product += dn * weight * v;
    }
    block_sums(scratch, &g_sum, &g_product);
    g_sum *= per_channel;
    g_product *= per_channel;
    for (int64_t c = threadIdx.x; c < p.shape.channels; c += blockDim.x) {
      const float v = (value(c) - mean - drift) * rstd;
      const float g = to_float(dout[c]) * (z ? silu(to_float(z[c])) : 1.0f) * (p.weight ? p.weight[c] : 1.0f);
      row_of<X>(params.dx, row)[c] = from_float<X>(rstd * (g - g_sum - v * g_product));
    }
  }
}

template <typename X, typename Y>
int launch(const NormGateBackward& params, void* stream) {
  using Kernel = void (*)(NormGateBackward);
  constexpr Kernel kKernels[] = {norm_gate_bwd_kernel<X, Y, kNormGateLayouts[0].lanes, kNormGateLayouts[0].packs>,
                                 norm_gate_bwd_kernel<X, Y, kNormGateLayouts[1].lanes, kNormGateLayouts[1].packs>,
                                 norm_gate_bwd_kernel<X, Y, kNormGateLayouts[2].lanes, kNormGateLayouts[2].packs>};
  const int64_t channels = params.norm.shape.channels;
  const bool vector = aligned(params.norm) && aligned(params.dout) && aligned(params.dx) && aligned(params.dz);
  const int layout = vector ? norm_gate_layout(channels) : kNormGateLayoutCount;
  const unsigned blocks = static_cast<unsigned>(params.blocks);
  if (layout == kNormGateLayoutCount) {
    const int64_t warps = std::min<int64_t>((channels + kWarp - 1) / kWarp, kWarps);
    return launch_kernel(blocks, static_cast<unsigned>(warps) * kWarp, 2 * kWarps * sizeof(float), stream,
                         norm_gate_bwd_any_kernel<X, Y>, params);
  }
  const int64_t shared_bytes = kNormGateThreads / kNormGateLayouts[layout].lanes * channels * sizeof(float);
  return launch_kernel(blocks, kNormGateThreads, static_cast<unsigned>(shared_bytes), stream, kKernels[layout], params);
}

}  // namespace

int launch_norm_gate_bwd(const NormGateBackward& params, void* stream) {
  if (params.norm.shape.rows == 0) return kSuccess;
  return for_dtypes(params.norm.x.dtype, params.dout.dtype,
                    [&](auto x, auto y) { return launch<decltype(x), decltype(y)>(params, stream); });
}

}  // namespace mtlkit::cuda
