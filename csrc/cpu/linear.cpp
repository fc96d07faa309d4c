// A linear layer over the channels of pixels or tokens, and its gradients.
//
// The gradient of x is another such layer, with the transposed weight. The gradient of the weight is summed in
// registers, a block of outputs by a panel of inputs, over the rows of a tile; the sums of tiles are added in order.
// Threads divide blocks, so that results do not depend on their number.
#include "cpu/linear.h"

#include "cpu/kernels.h"
#include "cpu/pixel_linear.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kGrain = 1 << 18;  // multiply-adds per thread, at least
constexpr int64_t kDepth = 64;       // rows of a tile

int threads_for(const LinearForward& p, int64_t products) {
  return static_cast<int>(max(1, min(p.threads, products * p.rows * p.inputs * p.outputs / kGrain)));
}

// out[i][j] (+)= sum over `depth` rows of dy[row][i] panel[row][j], for `outputs` rows of out and `vectors` vectors.
template <int outputs, int vectors>
void gradient_block(const float* dy, int64_t dy_pitch, const float* panel, int64_t depth, bool add, float* out,
                    int64_t out_pitch, int64_t left) {
  constexpr int lanes = kLanes<float>;
  FloatVec sum[outputs][vectors] = {};
  for (int64_t k = 0; k < depth; ++k, dy += dy_pitch, panel += vectors * lanes) {
    FloatVec v[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) v[j] = load(panel + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < outputs; ++i) {
      const FloatVec factor = splat(dy[i]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += factor * v[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < outputs; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* const to = out + i * out_pitch + j * lanes;
      const int64_t rest = left - j * lanes;
      store_left<float>(to, add ? load_left<float>(to, rest) + sum[i][j] : sum[i][j], rest);
    }
  }
}

// A thread's blocks of dweight; `panel` is its scratch memory for a tile.
void gradient_of_weight(const LinearBackward& q, int thread, int team, float* panel) {
  constexpr int lanes = kLanes<float>;
  const LinearForward& p = q.forward;
  const auto *const x = static_cast<const float*>(p.x), *const dy = static_cast<const float*>(q.dy);
  auto* const dweight = static_cast<float*>(q.dweight);
  const int64_t all = ceil_div(p.inputs, lanes), panels = ceil_div(all, kPanelVectors);
  const int64_t blocks = ceil_div(p.outputs, kPixels);
  const Share mine = share(panels * blocks, team, thread);
  for (int64_t first = mine.first, last = first; first < mine.last; first = last) {
    const int64_t i = first / blocks;
    last = min(mine.last, (i + 1) * blocks);
    const Share vectors = share(all, panels, i);
    const int64_t column = vectors.first * lanes, columns = min(vectors.last * lanes, p.inputs) - column;
    with_count<kPanelVectors>(vectors.last - vectors.first, [&](auto count) {
      constexpr int kVectors = decltype(count)::value;
      for (int64_t row = 0; row < p.rows; row += kDepth) {
        const int64_t depth = min(kDepth, p.rows - row);
        pack<float>(x + row * p.inputs + column, DType::kFloat32, p.inputs, 1, depth, columns, panel, kVectors * lanes);
        for (int64_t b = first; b < last; ++b) {
          const Share outputs = share(p.outputs, blocks, b - i * blocks);
          with_count<kPixels>(outputs.last - outputs.first, [&](auto size) {
            gradient_block<decltype(size)::value, kVectors>(dy + row * p.outputs + outputs.first, p.outputs, panel,
                                                            depth, row > 0, dweight + outputs.first * p.inputs + column,
                                                            p.inputs, columns);
          });
        }
      }
    });
  }
}

// A thread's vectors of dbias.
void gradient_of_bias(const LinearBackward& q, int thread, int team) {
  constexpr int lanes = kLanes<float>;
  const LinearForward& p = q.forward;
  const Share mine = share(ceil_div(p.outputs, lanes), team, thread);
  for (int64_t o = mine.first * lanes; o < min(p.outputs, mine.last * lanes); o += lanes) {
    const float* dy = static_cast<const float*>(q.dy) + o;
    FloatVec total{};
    for (int64_t row = 0; row < p.rows; row += kDepth) {
      FloatVec sum{};
      for (int64_t end = min(p.rows, row + kDepth), l = row; l < end; ++l, dy += p.outputs) {
        sum += load_left<float>(dy, p.outputs - o);
      }
      total += sum;
    }
    store_left<float>(static_cast<float*>(q.dbias) + o, total, p.outputs - o);
  }
}

}  // namespace

int linear_forward(const LinearForward& p) {
  const PixelLinear<float> layer{
      p.rows, p.inputs, p.outputs, static_cast<const float*>(p.x), static_cast<float*>(p.y), p.weight, p.bias, false};
  const int threads = threads_for(p, 1);
  const int64_t panel = panel_size<float>(p.inputs);
  Scratch<float> panels(threads * panel);
  if (!panels.ok()) return kOutOfMemory;
  on_threads(threads, [&](int thread, int team) { pixel_linear(layer, thread, team, panels.get() + thread * panel); });
  return kOk;
}

int linear_backward(const LinearBackward& q) {
  const LinearForward& p = q.forward;
  const Tensor<2> transposed{p.weight.data, p.weight.dtype, {p.weight.stride[1], p.weight.stride[0]}};
  const PixelLinear<float> layer{
      p.rows, p.outputs, p.inputs, static_cast<const float*>(q.dy), static_cast<float*>(q.dx), transposed, {}, q.add};
  const int threads = threads_for(p, (q.dx ? 1 : 0) + (q.dweight ? 1 : 0));
  const int64_t panel = max(panel_size<float>(p.outputs), panel_size<float>(kDepth));
  Scratch<float> panels(threads * panel);
  if (!panels.ok()) return kOutOfMemory;
  on_threads(threads, [&](int thread, int team) {
    float* const mine = panels.get() + thread * panel;
    if (q.dx) pixel_linear(layer, thread, team, mine);
    if (q.dweight) gradient_of_weight(q, thread, team, mine);
    if (q.dbias) gradient_of_bias(q, thread, team);
  });
  return kOk;
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
