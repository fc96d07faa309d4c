#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "inference/node.h"
#include "operators.h"

using namespace mtlkit;

namespace {

void check(int status) {
  if (status != kOk) throw std::runtime_error("status " + std::to_string(status));
}

// (B, H, W, C) as (B, C, H, W), the kernels' form of images.
Tensor<4> image(float* data, int64_t H, int64_t W, int64_t C) { return tensor(data, H * W * C, int64_t{1}, W * C, C); }

Tensor<3> sequences(float* data, int64_t D, int64_t L) { return tensor(data, D * L, L, int64_t{1}); }

float* zeros(Case& c, const char* key) {
  float* data = c.output(key);
  std::fill_n(data, c.expected.at(key).elements(), 0.f);
  return data;
}

int64_t count_checkpoints(int64_t tokens) { return (tokens + kCheckpointTokens - 1) / kCheckpointTokens; }

void ss2d(Case& c, int threads) {
  const int64_t B = c.size("u", 0), H = c.size("u", 1), W = c.size("u", 2), D = c.size("u", 3);
  const int64_t N = c.size("A_logs", 1), R = c.size("dt_weight", 2);
  std::vector<float> checkpoints(B * kDirections * count_checkpoints(H * W) * N * D), y(B * H * W * D);
  SS2DBackward q{};
  SS2DForward& p = q.forward;
  p.shape = {B, D, H, W, N, R};
  p.u = image(c.data("u"), H, W, D);
  p.y = image(y.data(), H, W, D);
  p.x_dbl = c.data("x_dbl");
  p.dt_weight = tensor(c.data("dt_weight"), D * R, R, int64_t{1});
  p.dt_bias = tensor(c.data("dt_bias"), D, int64_t{1});
  p.A_logs = tensor(c.data("A_logs"), N, int64_t{1});
  p.Ds = tensor(c.data("Ds"), int64_t{1});
  p.checkpoints = checkpoints.data();
  p.threads = threads;
  check(cpu_kernels().ss2d_forward(p));
  q.dy = image(c.data("dy"), H, W, D);
  q.du = image(c.output("du"), H, W, D);
  q.dx_dbl = c.output("dx_dbl");
  q.ddt_weight = c.output("ddt_weight");
  q.ddt_bias = c.output("ddt_bias");
  q.dA_logs = c.output("dA_logs");
  q.dDs = c.output("dDs");
  check(cpu_kernels().ss2d_backward(q));
}

void selective_scan(Case& c, int threads) {
  const int64_t B = c.size("u", 0), D = c.size("u", 1), L = c.size("u", 2), N = c.size("A", 1);
  std::vector<float> checkpoints(B * count_checkpoints(L) * N * D), out(B * D * L);
  SelectiveScanBackward q{};
  SelectiveScanForward& p = q.forward;
  const int64_t G = c.size("B", 1);  // these cases have groups
  p.shape = {B, D, L, N, G};
  p.u = sequences(c.data("u"), D, L);
  p.delta = sequences(c.data("delta"), D, L);
  p.A = tensor(c.data("A"), N, int64_t{1});
  p.B = tensor(c.data("B"), G * N * L, N * L, L, int64_t{1});
  p.C = tensor(c.data("C"), G * N * L, N * L, L, int64_t{1});
  p.variable_B = p.variable_C = true;
  p.D = tensor(c.data("D"), int64_t{1});
  p.z = sequences(c.data("z"), D, L);
  p.delta_bias = tensor(c.data("delta_bias"), int64_t{1});
  p.delta_softplus = c.number("delta_softplus") != 0;
  p.out = sequences(out.data(), D, L);
  p.checkpoints = checkpoints.data();
  p.threads = threads;
  check(cpu_kernels().selective_scan_forward(p));
  q.dout = sequences(c.data("dy"), D, L);
  q.du = sequences(c.output("du"), D, L);
  q.ddelta = sequences(c.output("ddelta"), D, L);
  q.dz = sequences(c.output("dz"), D, L);
  q.dA = zeros(c, "dA");
  q.dB = zeros(c, "dB");
  q.dC = zeros(c, "dC");
  q.dD = zeros(c, "dD");
  q.ddelta_bias = zeros(c, "ddelta_bias");
  check(cpu_kernels().selective_scan_backward(q));
}

void dwconv_silu(Case& c, int threads) {
  const int64_t B = c.size("x", 0), H = c.size("x", 1), W = c.size("x", 2), D = c.size("x", 3);
  DepthwiseConv2dBackward q{};
  DepthwiseConv2dForward& p = q.forward;
  p.shape = same_3x3(B, D, H, W);
  p.silu = true;
  p.x = image(c.data("x"), H, W, D);
  p.weight = tensor(c.data("weight"), int64_t{9}, int64_t{3}, int64_t{1});
  p.bias = tensor(c.data("bias"), int64_t{1});
  p.threads = threads;
  q.dy = image(c.data("dy"), H, W, D);
  q.dx = image(c.output("dx"), H, W, D);
  q.dweight = c.output("dweight");
  q.dbias = c.output("dbias");
  check(cpu_kernels().depthwise_conv2d_backward(q));
}

void norm_gate(Case& c, int threads) {
  const int64_t rows = c.size("x", 0), D = c.size("x", 1);
  NormGateBackward q{};
  NormGateForward& p = q.forward;
  p.shape = {rows, D};
  p.x = tensor(c.data("x"), D, int64_t{1});
  p.z = tensor(c.data("z"), D, int64_t{1});
  p.weight = tensor(c.data("weight"), int64_t{1});
  p.bias = tensor(c.data("bias"), int64_t{1});
  p.eps = c.number("eps");
  p.threads = threads;
  q.dout = tensor(c.data("dy"), D, int64_t{1});
  q.dx = tensor(c.output("dx"), D, int64_t{1});
  q.dz = tensor(c.output("dz"), D, int64_t{1});
  q.dweight = c.output("dweight");
  q.dbias = c.output("dbias");
  check(cpu_kernels().norm_gate_backward(q));
}

constexpr const char* kWeights[kGatingWeights] = {
    "context_weight",  "context_bias",  "clf_gate_weight", "clf_gate_bias", "gain_weight", "gain_bias",
    "seg_gate_weight", "seg_gate_bias", "norm_weight",     "norm_bias",     "fc1_weight",  "fc1_bias",
    "fc2_weight",      "fc2_bias",      "seg_proj",        "clf_proj",
};

// A level: both passes over the map and the computations between them.
void task_interaction(Case& c, int threads) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t B = c.size("x", 0), C = c.size("x", 1), H = c.size("x", 2), W = c.size("x", 3), F = c.size("f", 1);
  const int64_t P = c.size("proj_weight", 0), Q = c.has("seg_proj") ? c.size("seg_proj", 0) : 0;
  const auto map = [&](float* data) { return tensor(data, C * H * W, H * W, int64_t{1}); };
  std::vector<std::vector<float>> rooms;
  const auto room = [&](int64_t elements) { return rooms.emplace_back(elements).data(); };

  InteractionReduceBackward reduce{};
  InteractionReduceForward& sums = reduce.forward;
  sums.shape = {B, C, H, W, P};
  sums.x = map(c.data("x"));
  sums.weight = tensor(c.data("proj_weight"), C, int64_t{1});
  sums.bias = tensor(c.data("proj_bias"), int64_t{1});
  sums.attn = tensor(c.data("attn_weight"), int64_t{1});
  sums.mean = room(B * C);
  sums.variance = room(B * C);
  sums.energy = Q ? room(B) : nullptr;
  sums.pooled = room(B * P);
  sums.softmax = c.has("attn_weight") ? room(2 * B) : nullptr;
  sums.threads = threads;
  check(kernels.interaction_reduce_forward(sums));

  InteractionGatingBackward gating{};
  InteractionGatingForward& gates = gating.forward;
  gates.shape = {B, C, P, F, c.size("fc1_weight", 0), Q};
  gates.tau = c.number("tau");
  gates.eps = c.number("eps");
  gates.alignment = Q > 0;
  gates.mean = sums.mean, gates.variance = sums.variance, gates.energy = sums.energy, gates.pooled = sums.pooled;
  gates.f = c.data("f");
  for (int i = 0; i < kGatingWeights; ++i) {
    gates.weights[i] = c.data(kWeights[i]);
    if (gates.weights[i]) gating.dweights[i] = c.output("d" + std::string(kWeights[i]));
  }
  gates.norm_mean = c.data("norm_mean");
  gates.norm_var = c.data("norm_var");
  gates.mu = room(B * C);
  gates.factors = room(B * C);
  gates.clf = room(B * F);
  gates.enhanced = room(B * F);
  gates.gates = room(2 * B);
  for (void*& signal : gates.signals) signal = room(B);
  gates.kept = room(2 * B * (F + C + Q) + 2 * F);
  gates.threads = threads;
  check(kernels.interaction_gating_forward(gates));

  InteractionScaleBackward scale{};
  scale.forward.shape = {B, C, H, W, 0};
  scale.forward.x = sums.x;
  scale.forward.threads = threads;
  scale.dy = map(c.data("dy"));
  scale.dfactors = room(B * C);
  check(kernels.interaction_scale_backward(scale));

  float *dmean = room(B * C), *dvariance = room(B * C), *denergy = room(B), *dpooled = room(B * P);
  gating.dfactors = scale.dfactors;
  gating.dclf = c.data("dclf");
  gating.dmean = dmean;
  gating.dvariance = Q ? nullptr : dvariance;
  gating.denergy = Q ? denergy : nullptr;
  gating.dpooled = dpooled;
  gating.df = c.output("df");
  check(kernels.interaction_gating_backward(gating));

  reduce.dy = scale.dy;
  reduce.factors = gates.factors;
  reduce.dmean = dmean;
  reduce.dvariance = gating.dvariance;
  reduce.denergy = gating.denergy;
  reduce.dpooled = dpooled;
  reduce.dx = map(c.output("dx"));
  reduce.dweight = c.output("dproj_weight");
  reduce.dbias = c.output("dproj_bias");
  reduce.dattn = sums.attn ? c.output("dattn_weight") : nullptr;
  check(kernels.interaction_reduce_backward(reduce));
}

}  // namespace

bool run_backward(Case& c, int threads) {
  static const std::map<std::string, void (*)(Case&, int)> operators = {
      {"ss2d", ss2d},           {"selective_scan", selective_scan},     {"dwconv_silu", dwconv_silu},
      {"norm_gate", norm_gate}, {"task_interaction", task_interaction},
  };
  if (!c.has("dy")) return false;
  operators.at(c.kind)(c, threads);
  return true;
}
