// LayerNorm over the channels, times SiLU(z) if a gate is given: forward (formula: common/norm_gate.h).
//
// A few lanes own a row and keep it in registers, so that x, z and out are each read or written once.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/launchers.h"
#include "cuda/norm_gate/norm_gate.cuh"

namespace mtlkit::cuda {
namespace {

constexpr int64_t kMaxBlocks = INT32_MAX;

// X: type of x. Y: type of z and out.
template <typename X, typename Y, int kLanes, int kPacks>
__global__ void __launch_bounds__(kNormGateThreads) norm_gate_fwd_kernel(const NormGateForward params) {
  constexpr int kRows = kNormGateThreads / kLanes;
  const NormGate& p = params.norm;

  // All threads of a block run the same iterations, so that all lanes reach every row_sum.
  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.shape.rows; first += int64_t{gridDim.x} * kRows) {
    const int64_t row = first + threadIdx.x / kLanes;
    const Share<kLanes, kPacks> share{static_cast<int>(threadIdx.x % kLanes),
                                      row < p.shape.rows ? static_cast<int>(p.shape.channels) / kVector : 0};
    float x[kPacks][kVector];
    Pack<Y, kVector> z[kPacks];
    load_row<X>(p, row, share, x);
    if (params.addend.data) {
      share.each([&](int j, int c) {
        const Pack addend = load<kVector>(row_of<const X>(params.addend, row) + c);
        for (int i = 0; i < kVector; ++i) x[j][i] += to_float(addend.values[i]);
      });
    }
    if (p.z.data) share.each([&](int j, int c) { z[j] = load<kVector>(row_of<const Y>(p.z, row) + c); });
    normalise(p, share, x);
    share.each([&](int j, int c) {
      const Pack weight = parameters(p.weight, c, 1.0f), bias = parameters(p.bias, c, 0.0f);
      Pack<Y, kVector> out;
      for (int i = 0; i < kVector; ++i) {
        float y = x[j][i] * weight.values[i] + bias.values[i];
        if (p.z.data) y *= silu(to_float(z[j].values[i]));
        out.values[i] = from_float<Y>(y);
      }
      store(row_of<Y>(params.out, row) + c, out);
    });
  }
}

// For any number of channels, kCount at a time: a warp owns a row and reads it three times, twice from the cache.
template <typename X, typename Y, int kCount>
__global__ void __launch_bounds__(kNormGateThreads) norm_gate_fwd_any_kernel(const NormGateForward params) {
  constexpr int kRows = kNormGateThreads / kWarp;
  const NormGate& p = params.norm;
  const int lane = threadIdx.x % kWarp;
  const float per_channel = 1.0f / static_cast<float>(p.shape.channels);

  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp; row < p.shape.rows;
       row += int64_t{gridDim.x} * kRows) {
    // f(c, values) for each pack of the lane
    const auto each = [&](auto f) {
      for (int64_t c = int64_t{lane} * kCount; c < p.shape.channels; c += kWarp * kCount) {
        float x[kCount];
        const Pack p_x = load<kCount>(row_of<const X>(p.x, row) + c);
        for (int i = 0; i < kCount; ++i) x[i] = to_float(p_x.values[i]);
        if (params.addend.data) {
          const Pack addend = load<kCount>(row_of<const X>(params.addend, row) + c);
          for (int i = 0; i < kCount; ++i) x[i] += to_float(addend.values[i]);
        }
        f(c, x);
      }
    };
    float sum = 0.0f, squares = 0.0f, drift = 0.0f;
    each([&](int64_t, const float* x) {
      for (int i = 0; i < kCount; ++i) sum += x[i];
    });
    const float mean = warp_sum(sum) * per_channel;
    each([&](int64_t, const float* x) {
      for (int i = 0; i < kCount; ++i) {
        const float centred = x[i] - mean;
        squares += centred * centred;
        drift += centred;
      }
    });
    drift = warp_sum(drift) * per_channel;
    const float rstd = rstd_of(warp_sum(squares) * per_channel - drift * drift, p.eps);
    each([&](int64_t c, const float* x) {
      Pack<Y, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        float y = (x[i] - mean - drift) * rstd;
        if (p.weight) y *= p.weight[c + i];
        if (p.bias) y += p.bias[c + i];
        if (p.z.data) y *= silu(to_float(row_of<const Y>(p.z, row)[c + i]));
        out.values[i] = from_float<Y>(y);
      }
      store(row_of<Y>(params.out, row) + c, out);
    });
  }
}

template <typename X, typename Y>
int launch(const NormGateForward& params, void* stream) {
  using Kernel = void (*)(NormGateForward);
  constexpr Kernel kKernels[] = {norm_gate_fwd_kernel<X, Y, kNormGateLayouts[0].lanes, kNormGateLayouts[0].packs>,
                                 norm_gate_fwd_kernel<X, Y, kNormGateLayouts[1].lanes, kNormGateLayouts[1].packs>,
                                 norm_gate_fwd_kernel<X, Y, kNormGateLayouts[2].lanes, kNormGateLayouts[2].packs>};
  const bool vector = aligned(params.norm) && aligned(params.addend) && aligned(params.out);
  const int layout = vector ? norm_gate_layout(params.norm.shape.channels) : kNormGateLayoutCount;
  const bool held = layout < kNormGateLayoutCount;
  const int64_t abreast = kNormGateThreads / (held ? kNormGateLayouts[layout].lanes : kWarp);
  const int64_t blocks = std::min((params.norm.shape.rows + abreast - 1) / abreast, kMaxBlocks);
  const Kernel any = vector ? norm_gate_fwd_any_kernel<X, Y, kVector> : norm_gate_fwd_any_kernel<X, Y, 1>;
  return launch_kernel(static_cast<unsigned>(blocks), kNormGateThreads, 0, stream, held ? kKernels[layout] : any,
                       params);
}

}  // namespace

int launch_norm_gate_fwd(const NormGateForward& params, void* stream) {
  if (params.norm.shape.rows == 0) return kSuccess;
  return for_dtypes(params.norm.x.dtype, params.out.dtype,
                    [&](auto x, auto y) { return launch<decltype(x), decltype(y)>(params, stream); });
}

}  // namespace mtlkit::cuda
