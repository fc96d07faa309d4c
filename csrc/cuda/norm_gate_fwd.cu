// LayerNorm over the channels, times SiLU(z) where a gate is given (formula: common/norm_gate.h).
//
// One warp owns a row and reads it three times: mean, variance about the mean, result. Only the first read comes from
// memory, the other two from the L1 cache, so that the kernel moves x, z and out once each.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int64_t kMaxBlocks = INT32_MAX;

// X: type of x. Y: type of z and out. kCount: elements per load; channels and every row's start are multiples of it.
template <typename X, typename Y, int kCount>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock) norm_gate_fwd_kernel(const NormGateForward params) {
  const int lane = threadIdx.x % kWarp;
  const int64_t channels = params.channels;
  const float per_channel = 1.0f / static_cast<float>(channels);

  // The loop over rows is the same for all lanes of a warp, so that they meet in every warp_sum.
  const int64_t first_row = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  for (int64_t row = first_row; row < params.rows; row += int64_t{gridDim.x} * kWarpsPerBlock) {
    const X* x = static_cast<const X*>(params.x.data) + row * params.x.stride[0];
    const Y* z = params.z.data ? static_cast<const Y*>(params.z.data) + row * params.z.stride[0] : nullptr;
    Y* out = static_cast<Y*>(params.out.data) + row * params.out.stride[0];

    float sum = 0.0f;
    for (int64_t c = lane * kCount; c < channels; c += kWarp * kCount) {
      const Pack p_x = load<kCount>(x + c);
      for (int i = 0; i < kCount; ++i) sum += to_float(p_x.values[i]);
    }
    const float mean = warp_sum(sum) * per_channel;

    float squares = 0.0f;
    for (int64_t c = lane * kCount; c < channels; c += kWarp * kCount) {
      const Pack p_x = load<kCount>(x + c);
      for (int i = 0; i < kCount; ++i) {
        const float centred = to_float(p_x.values[i]) - mean;
        squares += centred * centred;
      }
    }
    const float rstd = rsqrt_approx(warp_sum(squares) * per_channel + params.eps);

    for (int64_t c = lane * kCount; c < channels; c += kWarp * kCount) {
      const Pack p_x = load<kCount>(x + c);
      float y[kCount];
      for (int i = 0; i < kCount; ++i) y[i] = (to_float(p_x.values[i]) - mean) * rstd;
      if (params.weight) {
        const Pack p_weight = load<kCount>(params.weight + c);
        for (int i = 0; i < kCount; ++i) y[i] *= p_weight.values[i];
      }
      if (params.bias) {
        const Pack p_bias = load<kCount>(params.bias + c);
        for (int i = 0; i < kCount; ++i) y[i] += p_bias.values[i];
      }
      if (z) {
        const Pack p_z = load<kCount>(z + c);
        for (int i = 0; i < kCount; ++i) y[i] *= silu(to_float(p_z.values[i]));
      }
      Pack<Y, kCount> p_out;
      for (int i = 0; i < kCount; ++i) p_out.values[i] = from_float<Y>(y[i]);
      store(out + c, p_out);
    }
  }
}

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Whether every row of `tensor` starts at a multiple of `count` elements.
bool aligned(const Tensor<2>& tensor, int64_t count) {
  return aligned(tensor.data, count * size_of(tensor.dtype)) && tensor.stride[0] % count == 0;
}

template <typename X, typename Y>
int launch(const NormGateForward& params, void* stream) {
  constexpr int kVector = 4;
  const int64_t blocks = std::min((params.rows + kWarpsPerBlock - 1) / kWarpsPerBlock, kMaxBlocks);
  const bool vector = params.channels % kVector == 0 && aligned(params.x, kVector) && aligned(params.out, kVector) &&
                      (!params.z || aligned(params.z, kVector)) && aligned(params.weight, kVector * sizeof(float)) &&
                      aligned(params.bias, kVector * sizeof(float));
  const auto kernel = vector ? norm_gate_fwd_kernel<X, Y, kVector> : norm_gate_fwd_kernel<X, Y, 1>;
  return launch_kernel(static_cast<unsigned>(blocks), kWarp * kWarpsPerBlock, 0, stream, kernel, params);
}

template <typename X>
int launch_for_out(const NormGateForward& params, void* stream) {
  switch (params.out.dtype) {
    case DType::kFloat32:
      return launch<X, float>(params, stream);
    case DType::kBFloat16:
      return launch<X, bf16>(params, stream);
    case DType::kFloat16:
      return launch<X, f16>(params, stream);
    default:
      return kInvalidValue;
  }
}

}  // namespace

int launch_norm_gate_fwd(const NormGateForward& params, void* stream) {
  if (params.rows == 0 || params.channels == 0) return kSuccess;
  switch (params.x.dtype) {
    case DType::kFloat32:
      return launch_for_out<float>(params, stream);
    case DType::kBFloat16:
      return launch_for_out<bf16>(params, stream);
    case DType::kFloat16:
      return launch_for_out<f16>(params, stream);
    default:
      return kInvalidValue;
  }
}

}  // namespace mtlkit::cuda
