// Depthwise 3 x 3 convolution, bias and SiLU: backward (division among threads: dwconv_silu.h).
//
//   a = conv(x), recomputed      da = dy SiLU'(a)      dx = conv(da) with the filter rotated by 180 degrees
//   dweight[i, j] += da[h, w] x[h + i - 1, w + j - 1]      dbias += da
//
// Going down a strip, a thread computes da of its own column, row by row, and passes it to its neighbours through
// shared memory; each thread computes dx from the three columns around its own. The outermost columns of a block only
// compute da. A block processes every parts-th group of columns and writes its sums for weight and bias to its own row
// of partials; the caller adds the rows in a fixed order.
#include "cuda/device.cuh"
#include "cuda/dwconv_silu/dwconv_silu.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

template <int kCount>
constexpr unsigned shared_bytes() {
  return (2 * kCount + kConvSums) * kConvThreads * sizeof(float);
}

// T: type of x, dy and dx. kCount: channels per thread; more than one only if packs<kCount>() holds for all three.
template <typename T, int kCount>
__global__ void __launch_bounds__(kConvThreads, 2)
    dwconv_silu_bwd_kernel(const DwconvSiluBackward params, const ConvStrips strips, const bool across) {
  const DwconvSilu& p = params.conv;
  const ConvThread thread = conv_thread(across);
  const int neighbour = across ? kConvPacks : 1;  // threads from one column to the next
  const int64_t chunk = blockIdx.x / params.parts, part = blockIdx.x % params.parts;
  const int64_t c = (chunk * kConvPacks + thread.pack) * kCount;
  const int64_t columns = p.shape.batch * strips.strips * p.shape.width;
  const Filter<kCount> filter(p, c);
  const bool inner = thread.column > 0 && thread.column <= kConvInner;

  // A double buffer for rows of da: the barrier at each row ensures that all threads have read a row before it is
  // overwritten two rows later.
  Pack<float, kCount>* const exchange = reinterpret_cast<Pack<float, kCount>*>(dynamic_shared());
  int turn = 0;
  const int steps = static_cast<int>(strips.rows) + 2;
  float dweight[kTaps][kCount] = {}, dbias[kCount] = {};

  for (int64_t group = part; group * kConvInner < columns; group += params.parts) {
    const int64_t index = group * kConvInner + thread.column - 1;
    const bool there = c < p.shape.channels && index >= 0 && index < columns, own = there && inner;
    const ConvColumn column = conv_column(p, strips, there ? index : 0);
    Descent<T, kCount> x(p, column, c, column.first - 2, there ? p.shape.height : 0);
    const T* dy = pixel<const T>(params.dy, column.image, c, column.first - 1, column.w);
    T* dx = pixel<T>(params.dx, column.image, c, column.first, column.w);
    const unsigned height = there ? static_cast<unsigned>(p.shape.height) : 0;

    float window[kWindow][kWindow][kCount];  // rows h - 1 to h + 1 of x
    const auto enter = [&](int k) {
      Pack<T, kCount> row[kWindow];
      x.next(row);
      for (int j = 0; j < kWindow; ++j) {
        for (int i = 0; i < kCount; ++i) window[k][j][i] = to_float(row[j].values[i]);
      }
    };
    enter(1);
    enter(2);
    float sums[kWindow][kCount] = {};  // partial sums of rows h - 1 to h + 1 of dx
#pragma unroll 1
    for (int h = column.first - 1, step = 0; step < steps; ++h, ++step) {
      for (int j = 0; j < kWindow; ++j) {
        for (int i = 0; i < kCount; ++i) {
          window[0][j][i] = window[1][j][i];
          window[1][j][i] = window[2][j][i];
        }
      }
      enter(2);
      const bool inside = static_cast<unsigned>(h) < height;
      const Pack gradient = load_or_zero<kCount>(inside, dy);
      dy += params.dy.stride[2];

      Pack<float, kCount> da, beside[kWindow];
      for (int i = 0; i < kCount; ++i) {
        float a = filter.bias[i];
        for (int tap = 0; tap < kTaps; ++tap) {
          a += filter.taps[tap][i] * window[tap / kWindow][tap % kWindow][i];
        }
        const float s = sigmoid(a);
        da.values[i] = inside ? to_float(gradient.values[i]) * s * (1.0f + a * (1.0f - s)) : 0.0f;
      }
      Pack<float, kCount>* const row = exchange + turn * kConvThreads;
      turn ^= 1;
      row[threadIdx.x] = da;
      block_sync();

      if (!own) continue;
      // tap j of dx reads the pixel whose output used x at tap j: the right neighbour for j = 0
      beside[0] = column.w < p.shape.width - 1 ? row[threadIdx.x + neighbour] : Pack<float, kCount>{};
      beside[1] = da;
      beside[2] = column.w > 0 ? row[threadIdx.x - neighbour] : Pack<float, kCount>{};
      for (int i = 0; i < kCount; ++i) {
        for (int tap = 0; tap < kTaps; ++tap) {
          sums[tap / kWindow][i] += filter.taps[tap][i] * beside[tap % kWindow].values[i];
        }
      }
      if (step >= 2 && h <= column.end) {
        Pack<T, kCount> out;
        for (int i = 0; i < kCount; ++i) out.values[i] = from_float<T>(sums[0][i]);
        store(dx, out);
        dx += params.dx.stride[2];
      }
      const bool counts = step >= 1 && h < column.end;
      for (int i = 0; i < kCount; ++i) {
        sums[0][i] = sums[1][i];
        sums[1][i] = sums[2][i];
        sums[2][i] = 0.0f;
        if (!counts) continue;
        dbias[i] += da.values[i];
        for (int tap = 0; tap < kTaps; ++tap) {
          dweight[tap][i] += da.values[i] * window[tap / kWindow][tap % kWindow][i];
        }
      }
    }
  }

  // For one of the thread's channels at a time: each column stores its sums, then a few threads add over the columns.
  float* const gathered = reinterpret_cast<float*>(exchange + 2 * kConvThreads);  // (10, columns, packs)
  for (int i = 0; i < kCount; ++i) {
    if (i > 0) block_sync();
    for (int k = 0; k < kConvSums; ++k) {
      gathered[(k * kConvColumns + thread.column) * kConvPacks + thread.pack] =
          k < kTaps ? dweight[k % kTaps][i] : dbias[i];
    }
    block_sync();
    const int sum = threadIdx.x / kConvPacks, pack = threadIdx.x % kConvPacks;
    const int64_t channel = (chunk * kConvPacks + pack) * kCount + i;
    if (sum < kConvSums && channel < p.shape.channels) {
      float total = 0.0f;
      for (int column = 0; column < kConvColumns; ++column) {
        total += gathered[(sum * kConvColumns + column) * kConvPacks + pack];
      }
      params.partials[(part * p.shape.channels + channel) * kConvSums + sum] = total;
    }
  }
}

template <typename T, int kCount>
int launch(const DwconvSiluBackward& params, void* stream) {
  const DwconvSilu& p = params.conv;
  const int64_t chunks = (p.shape.channels + kConvPacks * kCount - 1) / (kConvPacks * kCount);
  if (chunks * params.parts > INT32_MAX || p.shape.height >= INT32_MAX || p.shape.width >= INT32_MAX)
    return kInvalidValue;
  return launch_kernel(static_cast<unsigned>(chunks * params.parts), kConvThreads, shared_bytes<kCount>(), stream,
                       dwconv_silu_bwd_kernel<T, kCount>, params, backward_strips(p, params.parts), p.x.stride[1] == 1);
}

}  // namespace

int launch_dwconv_silu_bwd(const DwconvSiluBackward& params, void* stream) {
  constexpr int kCount = 2;
  const DwconvSilu& p = params.conv;
  if (p.shape.batch == 0) return kSuccess;
  const bool vector =
      p.shape.channels % kCount == 0 && packs<kCount>(p.x) && packs<kCount>(params.dy) && packs<kCount>(params.dx);
  return for_dtype(p.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    return vector ? launch<T, kCount>(params, stream) : launch<T, 1>(params, stream);
  });
}

}  // namespace mtlkit::cuda
