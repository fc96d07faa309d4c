// Depthwise 3 x 3 convolution, bias and SiLU: forward (division among threads: dwconv_silu.h).
#include "cuda/device.cuh"
#include "cuda/dwconv_silu/dwconv_silu.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

// T: type of x and y. kCount: channels per thread; more than one only if packs<kCount>() holds for x and y.
template <typename T, int kCount>
__global__ void __launch_bounds__(kConvThreads)
    dwconv_silu_fwd_kernel(const DwconvSiluForward params, const ConvStrips strips, const bool across) {
  const DwconvSilu& p = params.conv;
  const ConvThread thread = conv_thread(across);
  const int64_t chunks = (p.shape.channels + kConvPacks * kCount - 1) / (kConvPacks * kCount);
  const int64_t groups = gridDim.x / chunks;
  const int64_t chunk = across ? blockIdx.x % chunks : blockIdx.x / groups;
  const int64_t group = across ? blockIdx.x / chunks : blockIdx.x % groups;
  const int64_t c = (chunk * kConvPacks + thread.pack) * kCount, index = group * kConvColumns + thread.column;
  if (c >= p.shape.channels || index >= p.shape.batch * strips.strips * p.shape.width) return;

  const ConvColumn column = conv_column(p, strips, index);
  const Filter<kCount> filter(p, c);
  Descent<T, kCount> x(p, column, c, column.first - 1, column.end + 1);
  T* y = pixel<T>(params.y, column.image, c, column.first, column.w);

  // Partial sums of three rows of y: h - 1, h and h + 1, where h is the current row of x.
  float sums[kWindow][kCount];
  for (int k = 0; k < kWindow; ++k) {
    for (int i = 0; i < kCount; ++i) sums[k][i] = filter.bias[i];
  }
  Pack<T, kCount> row[kWindow], next[kWindow];
  x.next(next);
#pragma unroll 3
  for (int h = column.first - 1; h <= column.end; ++h) {
    for (int j = 0; j < kWindow; ++j) row[j] = next[j];
    x.next(next);  // prefetch the next row
    for (int j = 0; j < kWindow; ++j) {
      for (int i = 0; i < kCount; ++i) {
        const float value = to_float(row[j].values[i]);
        for (int k = 0; k < kWindow; ++k) sums[k][i] += filter.taps[(kWindow - 1 - k) * kWindow + j][i] * value;
      }
    }
    if (h > column.first) {
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) out.values[i] = from_float<T>(silu(sums[0][i]));
      store(y, out);
      y += params.y.stride[2];
    }
    for (int i = 0; i < kCount; ++i) {
      sums[0][i] = sums[1][i];
      sums[1][i] = sums[2][i];
      sums[2][i] = filter.bias[i];
    }
  }
}

template <typename T, int kCount>
int launch(const DwconvSiluForward& params, void* stream) {
  const DwconvSilu& p = params.conv;
  const ConvStrips strips = forward_strips(p, kCount);
  const int64_t chunks = (p.shape.channels + kConvPacks * kCount - 1) / (kConvPacks * kCount);
  const int64_t groups = (p.shape.batch * strips.strips * p.shape.width + kConvColumns - 1) / kConvColumns;
  if (chunks * groups > INT32_MAX || p.shape.height >= INT32_MAX || p.shape.width >= INT32_MAX) return kInvalidValue;
  return launch_kernel(static_cast<unsigned>(chunks * groups), kConvThreads, 0, stream,
                       dwconv_silu_fwd_kernel<T, kCount>, params, strips, p.x.stride[1] == 1);
}

}  // namespace

int launch_dwconv_silu_fwd(const DwconvSiluForward& params, void* stream) {
  constexpr int kCount = 4;
  const DwconvSilu& p = params.conv;
  if (p.shape.batch == 0) return kSuccess;
  const bool vector = p.shape.channels % kCount == 0 && packs<kCount>(p.x) && packs<kCount>(params.y);
  return for_dtype(p.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    return vector ? launch<T, kCount>(params, stream) : launch<T, 1>(params, stream);
  });
}

}  // namespace mtlkit::cuda
