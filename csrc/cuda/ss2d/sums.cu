// Adds the parts that the main kernel of ss2d's backward pass writes: over blocks of channels, and over images and
// chunks.
#include <type_traits>

#include "cuda/ss2d/bwd.cuh"

namespace mtlkit::cuda {
namespace {

// The direction of a scan, given its index among the scans of a launch.
__device__ int direction_of(const SS2D& p, const Portion& portion, int scan) {
  const int pairs = static_cast<int>(p.plan.pairs);
  return portion.first_pair + scan % pairs + 2 * (scan / pairs);
}

constexpr int kSumThreads = 256, kSumsAtOnce = 4;  // kSumsAtOnce: values of a row per thread

// Adds the parts of the rows of a portion over the blocks of channels. T: the type of x_dbl.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    ss2d_sum_rows_kernel(const SS2DBackward params, const SS2DGeometry geometry, const Divisor row,
                         const Portion portion, const int tile_tokens, const int pieces) {
  const SS2D& p = params.scan;
  int block = static_cast<int>(blockIdx.x);
  const int piece = block % pieces;
  block /= pieces;
  const int scans = static_cast<int>(p.plan.scans()), scan = block % scans;
  block /= scans;
  const int direction = direction_of(p, portion, scan);
  const int chunks = static_cast<int>(p.plan.chunks), chunk = block % chunks, image = block / chunks;
  const Window window(p, portion, tile_tokens, chunk, direction < 2);
  const int64_t first = int64_t{piece} * kSumThreads * kSumsAtOnce, left = window.pixels * p.shape.row() - first;
  if (left <= 0) return;
  const int count = left < kSumThreads * kSumsAtOnce ? static_cast<int>(left) : kSumThreads * kSumsAtOnce;
  const int thread = static_cast<int>(threadIdx.x);

  const float* part = params.parts + rows_before(p, 0, image, scan, chunk, tile_tokens) + first;
  const int64_t stride = rows_before(p, 1, 0, 0, 0, 0);
  float sum[kSumsAtOnce] = {};
#pragma unroll 4
  for (int i = 0; i < static_cast<int>(stored_parts(p)); ++i, part += stride) {
#pragma unroll
    for (int j = 0; j < kSumsAtOnce; ++j) {
      const int at = thread + j * kSumThreads;
      sum[j] += part[at < count ? at : 0];
    }
  }

  const int64_t pixel = first / p.shape.row();
  const auto skipped = static_cast<uint32_t>(first - pixel * p.shape.row());
#pragma unroll
  for (int j = 0; j < kSumsAtOnce; ++j) {
    const int at = thread + j * kSumThreads;
    if (at >= count) break;
    const uint32_t further = row.divide(skipped + at), value = skipped + at - further * row.value;
    const int64_t index = window.first + pixel + further;
    int64_t place = index;
    if (direction % 2 == 1) {
      const uint32_t x = geometry.height.divide(static_cast<uint32_t>(index));
      place = (index - int64_t{x} * p.shape.height) * p.shape.width + x;
    }
    const int64_t pixel_of_all = (portion.first_image + image) * p.shape.tokens() + place;
    T* to = static_cast<T*>(params.dx_dbl) + (pixel_of_all * kDirections + direction) * p.shape.row() + value;
    if constexpr (std::is_same_v<T, float>) sum[j] += *to;
    *to = from_float<T>(sum[j]);
  }
}

// Adds the `sums` of images and chunks beyond the first to the parameter gradients.
__global__ void __launch_bounds__(kSumThreads)
    ss2d_sum_over_tokens_kernel(const SS2DBackward params, const Portion portion, const int parts) {
  const SS2D& p = params.scan;
  const int64_t states = p.shape.states, rank = p.shape.rank, rows = p.plan.scans() * p.shape.channels;
  const int64_t count = rows * (states + rank + 2), index = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (index >= count) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < parts; ++i) sum += params.sums[i * count + index];

  // Adds to the element of the gradient that corresponds to `index` in `sums`.
  const auto add = [&](float* gradient, int64_t before, int64_t width) {
    const int64_t row = (index - before) / width, scan = row / p.shape.channels;
    const int64_t channel =
        direction_of(p, portion, static_cast<int>(scan)) * p.shape.channels + row % p.shape.channels;
    gradient[channel * width + (index - before) % width] += sum;
  };
  if (index < rows * states) {
    add(params.dA_logs, 0, states);
  } else if (index < rows * (states + rank)) {
    add(params.ddt_weight, rows * states, rank);
  } else if (index < rows * (states + rank + 1)) {
    add(params.ddt_bias, rows * (states + rank), 1);
  } else {
    add(params.dDs, rows * (states + rank + 1), 1);
  }
}

}  // namespace

int launch_sum_rows(const SS2DBackward& params, const SS2DGeometry& geometry, const Portion& portion, int tile_tokens,
                    void* stream) {
  const SS2D& p = params.scan;
  if (stored_parts(p) == 0) return kSuccess;
  const int64_t pixels = std::min(p.plan.window_tiles * tile_tokens, p.plan.pixels);  // per chunk
  const int64_t pieces = ceil_div(pixels * p.shape.row(), kSumThreads * kSumsAtOnce);
  const int64_t blocks = portion.images * p.plan.chunks * p.plan.scans() * pieces;
  if (blocks > INT32_MAX) return kInvalidValue;
  const Divisor row(static_cast<uint32_t>(p.shape.row()));
  const auto launch = [&](auto kernel) {
    return launch_kernel(blocks, kSumThreads, 0, stream, kernel, params, geometry, row, portion, tile_tokens,
                         static_cast<int>(pieces));
  };
  switch (p.x_dbl.dtype) {
    case DType::kBFloat16:
      return launch(ss2d_sum_rows_kernel<bf16>);
    case DType::kFloat16:
      return launch(ss2d_sum_rows_kernel<f16>);
    default:
      return launch(ss2d_sum_rows_kernel<float>);
  }
}

int launch_sum_over_tokens(const SS2DBackward& params, const Portion& portion, void* stream) {
  const SS2D& p = params.scan;
  const int parts = static_cast<int>(p.plan.images * p.plan.chunks) - 1;
  if (parts == 0) return kSuccess;
  const int64_t count = p.plan.scans() * p.shape.channels * (p.shape.states + p.shape.rank + 2);
  return launch_kernel(ceil_div(count, kSumThreads), kSumThreads, 0, stream, ss2d_sum_over_tokens_kernel, params,
                       portion, parts);
}

}  // namespace mtlkit::cuda
