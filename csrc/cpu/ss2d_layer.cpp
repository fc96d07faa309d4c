// A complete SS2D layer: runs projections, convolution, scan, norm and gate in sequence, in memory that the call
// allocates.
//
// All maps between the parts are channels-last. The output of the scan overwrites the convolution's input.
#include "cpu/ss2d_layer.h"

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/pixel_linear.h"
#include "cpu/silu.h"

namespace mtlkit {
namespace MTLKIT_ISA {

int ss2d_forward(const SS2DForward&);
int depthwise_conv2d_forward(const DepthwiseConv2dForward&);
int norm_gate_forward(const NormGateForward&);

namespace {

constexpr int64_t kLargeBlock = int64_t{8} << 20;  // bytes from which on to request large pages
constexpr int64_t kGrain = 1 << 18;                // multiply-adds per thread, at least

// The arguments of a call and its maps.
struct Layer {
  const SS2DLayerForward& p;
  int64_t pixels, channels, row;  // B L, D, 4 M
  float *x, *u, *z, *rows;        // (B L, D) each, rows (B L, 4 M); z is null without a gate
  float* panels;                  // packed weights, one panel per thread
  int64_t panel;                  // elements of a panel

  // The number of threads for `work` multiply-adds.
  int threads(int64_t work) const { return static_cast<int>(max(1, min(p.threads, work / kGrain))); }

  Tensor<4> image(float* map) const {
    const int64_t width = p.shape.width;
    return {map, DType::kFloat32, {p.shape.tokens() * channels, 1, width * channels, channels}};
  }

  Tensor<2> pixel_rows(float* map) const { return {map, DType::kFloat32, {channels, 1}}; }

  // map <- f(i, left) for each vector of the map; i is its first element.
  template <typename F>
  void fill(float* map, F f) const {
    const int64_t count = pixels * channels, vectors = ceil_div(count, kLanes<float>);
    on_threads(threads(16 * count), [&](int thread, int team) {
      const Share mine = share(vectors, team, thread);
      for (int64_t i = mine.first * kLanes<float>; i < min(count, mine.last * kLanes<float>); i += kLanes<float>) {
        store_left<float>(map + i, f(i, count - i), count - i);
      }
    });
  }

  // A linear layer that uses the weight's rows from `first` on.
  PixelLinear<float> linear(const float* from, int64_t inputs, float* to, int64_t outputs, const Tensor<2>& weight,
                            const Tensor<1>& bias, int64_t first = 0) const {
    PixelLinear<float> found{pixels, inputs, outputs, from, to, weight, bias, false};
    found.weight.data = at(weight, first * weight.stride[0]);
    if (bias) found.bias.data = at(bias, first * bias.stride[0]);
    return found;
  }

  template <typename... Layers>
  void project(const Layers&... layers) const {
    on_threads(threads((... + (pixels * layers.inputs * layers.outputs))), [&](int thread, int team) {
      (pixel_linear<float>(layers, thread, team, panels + thread * panel), ...);
    });
  }

  void project_in() const {
    const float* const from = static_cast<const float*>(p.x);
    const auto to_x = linear(from, p.model, x, channels, p.in_weight, p.in_bias);
    if (!z) return project(to_x);
    project(to_x, linear(from, p.model, z, channels, p.in_weight, p.in_bias, channels));
  }

  // u <- SiLU(convolution of x)
  int convolve() const {
    if (!p.conv_weight) {
      fill(u, [&](int64_t i, int64_t left) { return silu(load_left<float>(x + i, left)); });
      return kOk;
    }
    DepthwiseConv2dForward q{};
    const int64_t height = p.shape.height, width = p.shape.width, padding = p.kernel / 2;
    q.shape = {p.shape.batch, channels, height, width, p.kernel, height, width, 1, 1, padding, padding};
    q.silu = true;
    q.x = image(x);
    q.weight = p.conv_weight;
    q.bias = p.conv_bias;
    q.y = image(u);
    q.threads = threads((p.kernel * p.kernel + 8) * pixels * channels);
    return depthwise_conv2d_forward(q);
  }

  // x <- scan of u
  int scan() const {
    SS2DForward q{};
    q.shape = p.shape;
    q.u = image(u);
    q.y = image(x);
    q.x_dbl = rows;
    q.dt_weight = p.dt_weight;
    q.dt_bias = p.dt_bias;
    q.A_logs = p.A_logs;
    q.Ds = p.Ds;
    q.threads = threads(32 * kDirections * pixels * channels * (p.shape.states + 4));
    return ss2d_forward(q);
  }

  // x <- norm of x, times the gate
  int norm_and_gate() const {
    const bool fused = p.norm && p.gate == static_cast<int>(Gate::kSilu);
    if (p.norm) {
      NormGateForward q{};
      q.shape = {pixels, channels};
      q.x = q.out = pixel_rows(x);
      if (fused) q.z = pixel_rows(z);
      q.weight = p.norm_weight;
      q.bias = p.norm_bias;
      q.eps = p.eps;
      q.threads = threads(32 * pixels * channels);
      if (const int status = norm_gate_forward(q)) return status;
    }
    if (!z || fused) return kOk;
    const bool activated = p.gate == static_cast<int>(Gate::kSilu);
    fill(x, [&](int64_t i, int64_t left) {
      const FloatVec gate = load_left<float>(z + i, left);
      return load_left<float>(x + i, left) * (activated ? silu(gate) : gate);
    });
    return kOk;
  }
};

}  // namespace

int ss2d_layer_forward(const SS2DLayerForward& p) {
  const int64_t pixels = p.shape.batch * p.shape.tokens(), channels = p.shape.channels;
  const int64_t row = kDirections * p.shape.row(), map = round_up(pixels * channels, kLanes<float>);
  const bool gated = p.gate != static_cast<int>(Gate::kNone);
  const int64_t size = (gated ? 3 : 2) * map + pixels * row;
  const int64_t panel = panel_size<float>(max(p.model, channels));
  Scratch<float> maps(size), panels(p.threads * panel);
  if (!maps.ok() || !panels.ok()) return kOutOfMemory;
  const int64_t bytes = size * sizeof(float);
  if (bytes >= kLargeBlock) prefer_large_pages(reinterpret_cast<uintptr_t>(maps.get()), bytes);

  float *const x = maps.get(), *const u = x + map, *const z = gated ? u + map : nullptr;
  float* const rows = x + (gated ? 3 : 2) * map;
  const Layer layer{p, pixels, channels, row, x, u, z, rows, panels.get(), panel};
  layer.project_in();
  if (const int status = layer.convolve()) return status;
  layer.project(layer.linear(u, channels, rows, row, p.x_proj_weight, {}));
  if (const int status = layer.scan()) return status;
  if (const int status = layer.norm_and_gate()) return status;
  layer.project(layer.linear(x, channels, static_cast<float*>(p.y), p.model, p.out_weight, p.out_bias));
  return kOk;
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
