// The nodes that call the CPU kernels; in ONNX Runtime, the operators of the domain "mtlkit", version 1.
//
// Letters are those of the kernels' headers. Images are channels-last, except for TaskInteraction's map. All tensors
// are contiguous. An attribute gives the first channel that a node reads of an image, so that no copy has to split the
// channels.
#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/interaction/level.h"
#include "inference/kernel_node.h"

namespace mtlkit {
namespace {

// An image (B, H, W, C) in the kernels' order (B, C, H, W), from channel `first` on.
Tensor<4> image(float* data, const Sizes& sizes, int64_t first = 0) {
  const int64_t H = sizes[1], W = sizes[2], C = sizes[3];
  return tensor(data ? data + first : nullptr, H * W * C, int64_t{1}, W * C, C);
}

// Throws unless x has these pixels and the channels from `first` to `first + channels`.
void check_channels(const Input& x, const Sizes& pixels, int64_t first, int64_t channels) {
  Sizes least = pixels;
  least.push_back(first + channels);
  if (x.sizes.size() != 4 || !std::equal(pixels.begin(), pixels.end(), x.sizes.begin()) || x.sizes[3] < least[3]) {
    x.check_shape("(B, H, W, C or more)", least);
  }
}

// ---- SS2D -----------------------------------------------------------------------------------------------------------

//   y = ss2d(u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
//   y = LayerNorm(y) norm_weight + norm_bias                 with the attribute norm = 1
//   y = y SiLU(z)                                            if z is given
class SS2DKernel : public Kernel {
 public:
  explicit SS2DKernel(const NodeAttributes& attributes)
      : norm_(attributes.integer("norm", 0) != 0),
        eps_(attributes.number("eps", 1e-5f)),
        z_offset_(attributes.integer("z_offset", 0)) {
    check_attribute(eps_ >= 0, "eps: expected a number that is at least 0");
    check_attribute(z_offset_ >= 0, "z_offset: expected a number that is at least 0");
  }

  void compute(const NodeCall& call, int threads) const override {
    const Input u = call.input("u", 0), x_dbl = call.input("x_dbl", 1), dt_weight = call.input("dt_weight", 2);
    const Input dt_bias = call.input("dt_bias", 3), A_logs = call.input("A_logs", 4), Ds = call.input("Ds", 5);
    const Input weight = call.input("norm_weight", 6), bias = call.input("norm_bias", 7), z = call.input("z", 8);
    u.check_rank("(B, H, W, D)", 4, 1);
    dt_weight.check_rank("(4, D, R)", 3);
    A_logs.check_rank("(4 D, N)", 2);
    const int64_t B = u.sizes[0], H = u.sizes[1], W = u.sizes[2], D = u.sizes[3];
    const int64_t N = A_logs.sizes[1], R = dt_weight.sizes[2];
    dt_weight.check_shape("(4, D, R)", {kDirections, D, std::max<int64_t>(R, 1)});
    dt_bias.check_shape("(4, D)", {kDirections, D});
    A_logs.check_shape("(4 D, N), N from 1 to 256,", {kDirections * D, std::clamp<int64_t>(N, 1, kMostStates)});
    Ds.check_shape("(4 D,)", {kDirections * D});
    if (x_dbl.sizes.size() == 5) {
      x_dbl.check_shape("(B, H, W, 4, R + 2 N)", {B, H, W, kDirections, R + 2 * N});
    } else {
      x_dbl.check_shape("(B, H, W, 4 (R + 2 N))", {B, H, W, kDirections * (R + 2 * N)});
    }
    if (weight.given) weight.check_shape("(D,)", {D});
    if (bias.given) bias.check_shape("(D,)", {D});
    if (z.given) check_channels(z, {B, H, W}, z_offset_, D);
    check_attribute(norm_ || !(weight.given || bias.given || z.given),
                    "norm: expected 1 with norm_weight, norm_bias or z");

    float* y = call.output(0, u.sizes);
    if (u.elements() == 0) return;
    SS2DForward scan{};
    scan.shape = {B, D, H, W, N, R};
    scan.u = image(u.data, u.sizes);
    scan.y = image(y, u.sizes);
    scan.x_dbl = x_dbl.data;
    scan.dt_weight = tensor(dt_weight.data, D * R, R, int64_t{1});
    scan.dt_bias = tensor(dt_bias.data, D, int64_t{1});
    scan.A_logs = tensor(A_logs.data, N, int64_t{1});
    scan.Ds = tensor(Ds.data, int64_t{1});
    scan.threads = threads;
    check(cpu_kernels().ss2d_forward(scan));
    if (!norm_) return;
    NormGateForward norm{};  // in place: a row is read before it is written
    norm.shape = {B * H * W, D};
    norm.x = norm.out = tensor(y, D, int64_t{1});
    if (z.given) norm.z = tensor(z.data + z_offset_, z.sizes[3], int64_t{1});
    norm.weight = tensor(weight.data, int64_t{1});
    norm.bias = tensor(bias.data, int64_t{1});
    norm.eps = eps_;
    norm.threads = threads;
    check(cpu_kernels().norm_gate_forward(norm));
  }

 private:
  bool norm_;
  float eps_;
  int64_t z_offset_;
};

// ---- SelectiveScan --------------------------------------------------------------------------------------------------

// B or C with four strides; constant ones use two of them.
Tensor<4> rows_of(const Input& v) {
  const Sizes& s = v.sizes;
  if (s.size() == 2) return tensor(v.data, s[1], int64_t{1}, int64_t{0}, int64_t{0});
  const int64_t states = s[s.size() - 2], tokens = s.back(), groups = s.size() == 4 ? s[1] : 1;
  return tensor(v.data, groups * states * tokens, states * tokens, tokens, int64_t{1});
}

class SelectiveScanKernel : public Kernel {
 public:
  explicit SelectiveScanKernel(const NodeAttributes& attributes)
      : softplus_(attributes.integer("delta_softplus", 0) != 0) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input u = call.input("u", 0), delta = call.input("delta", 1), A = call.input("A", 2);
    const Input b = call.input("B", 3), c = call.input("C", 4), skip = call.input("D", 5), z = call.input("z", 6);
    const Input bias = call.input("delta_bias", 7);
    u.check_rank("(B, D, L)", 3, 1);
    A.check_rank("(D, N)", 2);
    const int64_t B = u.sizes[0], D = u.sizes[1], L = u.sizes[2], N = A.sizes[1];
    delta.check_shape("(B, D, L)", u.sizes);
    A.check_shape("(D, N), N from 1 to 256,", {D, std::clamp<int64_t>(N, 1, kMostStates)});
    int64_t groups = 0;
    for (const Input* v : {&b, &c}) {
      if (v->sizes.size() == 2) {
        v->check_shape("(D, N)", {D, N});
        continue;
      }
      const int64_t own = v->sizes.size() == 4 ? std::max<int64_t>(v->sizes[1], 1) : 1;
      if (v->sizes.size() == 4) {
        v->check_shape("(B, G, N, L)", {B, own, N, L});
      } else {
        v->check_shape("(B, N, L)", {B, N, L});
      }
      if (D % own || (groups && groups != own)) {
        throw Refused(std::string(v->name) +
                      ": expected a number of groups that divides D and is the same in B and C, got " +
                      std::to_string(own));
      }
      groups = own;
    }
    for (const Input* v : {&skip, &bias}) {
      if (v->given) v->check_shape("(D,)", {D});
    }
    if (z.given) z.check_shape("(B, D, L)", u.sizes);

    float *out = call.output(0, u.sizes), *last = call.output(1, {B, D, N});
    if (u.elements() == 0) return;
    SelectiveScanForward p{};
    p.shape = {B, D, L, N, std::max<int64_t>(groups, 1)};
    p.u = tensor(u.data, D * L, L, int64_t{1});
    p.delta = tensor(delta.data, D * L, L, int64_t{1});
    p.A = tensor(A.data, N, int64_t{1});
    p.B = rows_of(b);
    p.C = rows_of(c);
    p.variable_B = b.sizes.size() > 2;
    p.variable_C = c.sizes.size() > 2;
    p.D = tensor(skip.data, int64_t{1});
    p.z = tensor(z.data, D * L, L, int64_t{1});
    p.delta_bias = tensor(bias.data, int64_t{1});
    p.delta_softplus = softplus_;
    p.out = tensor(out, D * L, L, int64_t{1});
    p.last_state = last;
    p.threads = threads;
    check(cpu_kernels().selective_scan_forward(p));
  }

 private:
  bool softplus_;
};

// ---- DwconvSilu -----------------------------------------------------------------------------------------------------

class DwconvSiluKernel : public Kernel {
 public:
  explicit DwconvSiluKernel(const NodeAttributes& attributes) : offset_(attributes.integer("offset", 0)) {
    check_attribute(offset_ >= 0, "offset: expected a number that is at least 0");
  }

  void compute(const NodeCall& call, int threads) const override {
    const Input x = call.input("x", 0), weight = call.input("weight", 1), bias = call.input("bias", 2);
    x.check_rank("(B, H, W, C)", 4, 1);
    weight.check_rank("(D, 1, 3, 3)", 4, 0);
    const int64_t B = x.sizes[0], H = x.sizes[1], W = x.sizes[2], D = weight.sizes[0];
    weight.check_shape("(D, 1, 3, 3)", {D, 1, 3, 3});
    if (bias.given) bias.check_shape("(D,)", {D});
    check_channels(x, {B, H, W}, offset_, D);

    const Sizes sizes = {B, H, W, D};
    float* y = call.output(0, sizes);
    if (B == 0) return;
    DepthwiseConv2dForward p{};
    p.shape = same_3x3(B, D, H, W);
    p.silu = true;
    p.x = image(x.data, x.sizes, offset_);
    p.y = image(y, sizes);
    p.weight = tensor(weight.data, int64_t{9}, int64_t{3}, int64_t{1});
    p.bias = tensor(bias.data, int64_t{1});
    p.threads = threads;
    check(cpu_kernels().depthwise_conv2d_forward(p));
  }

 private:
  int64_t offset_;
};

// ---- NormGate -------------------------------------------------------------------------------------------------------

class NormGateKernel : public Kernel {
 public:
  explicit NormGateKernel(const NodeAttributes& attributes) : eps_(attributes.number("eps", 1e-5f)) {
    check_attribute(eps_ >= 0, "eps: expected a number that is at least 0");
  }

  void compute(const NodeCall& call, int threads) const override {
    const Input x = call.input("x", 0), weight = call.input("weight", 1), bias = call.input("bias", 2);
    const Input z = call.input("z", 3);
    if (x.sizes.empty() || x.sizes.back() < 1) x.check_rank("(..., D)", std::max<size_t>(x.sizes.size(), 1));
    const int64_t D = x.sizes.back();
    if (weight.given) weight.check_shape("(D,)", {D});
    if (bias.given) bias.check_shape("(D,)", {D});
    if (z.given) z.check_shape("(..., D), that of x,", x.sizes);

    float* out = call.output(0, x.sizes);
    if (x.elements() == 0) return;
    NormGateForward p{};
    p.shape = {x.elements() / D, D};
    p.x = tensor(x.data, D, int64_t{1});
    p.out = tensor(out, D, int64_t{1});
    p.z = tensor(z.data, D, int64_t{1});
    p.weight = tensor(weight.data, int64_t{1});
    p.bias = tensor(bias.data, int64_t{1});
    p.eps = eps_;
    p.threads = threads;
    check(cpu_kernels().norm_gate_forward(p));
  }

 private:
  float eps_;
};

// ---- InteractionReduce ----------------------------------------------------------------------------------------------

void check_projection(const Input& x, const Input& weight, const Input& bias, const Input& attn) {
  const int64_t C = x.sizes[1];
  weight.check_rank("(P, C)", 2, 0);
  const int64_t P = weight.sizes[0];
  weight.check_shape("(P, C)", {P, C});
  bias.check_shape("(P,)", {P});
  if (attn.given) attn.check_shape("(C,)", {C});
}

void reduce(const Input& x, const Input& weight, const Input& bias, const Input& attn, float* mean, float* variance,
            float* energy, float* pooled, int threads) {
  const int64_t B = x.sizes[0], C = x.sizes[1], H = x.sizes[2], W = x.sizes[3];
  std::vector<float> softmax(attn.given ? 2 * B : 0);
  InteractionReduceForward p{};
  p.shape = {B, C, H, W, weight.given ? weight.sizes[0] : 0};
  p.x = tensor(x.data, C * H * W, H * W, int64_t{1});
  if (weight.given) {
    p.weight = tensor(weight.data, C, int64_t{1});
    p.bias = tensor(bias.data, int64_t{1});
    p.attn = tensor(attn.data, int64_t{1});
    p.pooled = pooled;
  }
  p.mean = mean;
  p.variance = variance;
  p.energy = energy;
  p.softmax = attn.given ? softmax.data() : nullptr;
  p.threads = threads;
  check(cpu_kernels().interaction_reduce_forward(p));
}

class InteractionReduceKernel : public Kernel {
 public:
  explicit InteractionReduceKernel(const NodeAttributes&) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input x = call.input("x", 0), weight = call.input("weight", 1), bias = call.input("bias", 2);
    const Input attn = call.input("attn", 3);
    x.check_rank("(B, C, H, W)", 4, 1);
    if (weight.given) check_projection(x, weight, bias, attn);
    const int64_t B = x.sizes[0], C = x.sizes[1], P = weight.given ? weight.sizes[0] : 0;
    float *mean = call.output(0, {B, C}), *variance = call.output(1, {B, C});
    float *energy = call.output(2, {B}), *pooled = call.output(3, {B, P});
    if (B > 0) reduce(x, weight, bias, attn, mean, variance, energy, pooled, threads);
  }
};

// ---- TaskInteraction ------------------------------------------------------------------------------------------------

struct WeightRule {
  const char* name;
  const char* letters;
};

constexpr WeightRule kWeights[kGatingWeights] = {
    {"context_weight", "(F, P)"},  {"context_bias", "(F,)"}, {"clf_gate_weight", "(F, F)"}, {"clf_gate_bias", "(F,)"},
    {"gain_weight", "(C, F)"},     {"gain_bias", "(C,)"},    {"seg_gate_weight", "(C, C)"}, {"seg_gate_bias", "(C,)"},
    {"norm_weight", "(F,)"},       {"norm_bias", "(F,)"},    {"fc1_weight", "(hidden, S)"}, {"fc1_bias", "(hidden,)"},
    {"fc2_weight", "(2, hidden)"}, {"fc2_bias", "(2,)"},     {"seg_proj", "(Q, C)"},        {"clf_proj", "(Q, F)"},
};

// A level of task interaction. Inputs: x (B, C, H, W), f (B, F), proj_weight (P, C), proj_bias (P),
// norm_mean (F), norm_var (F), then the weights in the order of kWeights, attn (C) or none, normaliser (2) or none.
class TaskInteractionKernel : public Kernel {
 public:
  explicit TaskInteractionKernel(const NodeAttributes& attributes)
      : tau_(attributes.number("tau", 0.7f)), eps_(attributes.number("eps", 1e-3f)) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input x = call.input("x", 0), f = call.input("f", 1), proj_weight = call.input("proj_weight", 2);
    const Input proj_bias = call.input("proj_bias", 3), norm_mean = call.input("norm_mean", 4);
    const Input norm_var = call.input("norm_var", 5), attn = call.input("attn", kFirstWeight + kGatingWeights);
    const Input normaliser = call.input("normaliser", kFirstWeight + kGatingWeights + 1);
    std::array<Input, kGatingWeights> weights;
    for (size_t i = 0; i < kGatingWeights; ++i) weights[i] = call.input(kWeights[i].name, kFirstWeight + i);

    x.check_rank("(B, C, H, W)", 4, 1);
    f.check_rank("(B, F)", 2, 1);
    const int64_t B = x.sizes[0], C = x.sizes[1], F = f.sizes[1];
    f.check_shape("(B, F), with as many rows as x has images,", {B, F});
    check_projection(x, proj_weight, proj_bias, attn);
    const int64_t P = proj_weight.sizes[0];
    weights[kFc1Weight].check_rank("(hidden, S)", 2);
    const int64_t hidden = weights[kFc1Weight].sizes[0];
    const bool alignment = weights[kSegProj].given;
    if (alignment) weights[kSegProj].check_rank("(Q, C)", 2);
    const int64_t Q = alignment ? weights[kSegProj].sizes[0] : 0, S = alignment ? 3 : 2;
    const Sizes shapes[kGatingWeights] = {{F, P}, {F}, {F, F},      {F},      {C, F},      {C}, {C, C}, {C},
                                          {F},    {F}, {hidden, S}, {hidden}, {2, hidden}, {2}, {Q, C}, {Q, F}};
    GatingWeights addresses{};
    for (size_t i = 0; i < kGatingWeights; ++i) {
      if (i >= kSegProj && !alignment) continue;
      weights[i].check_shape(kWeights[i].letters, shapes[i]);
      addresses[i] = weights[i].data;
    }
    norm_mean.check_shape("(F,)", {F});
    norm_var.check_shape("(F,)", {F});
    if (normaliser.given) normaliser.check_shape("(2,)", {2});

    float *seg = call.output(0, x.sizes), *clf = call.output(1, {B, F}), *gates = call.output(2, {B, 2});
    float *signals = call.output(3, {B, S}), *enhanced = call.output(4, {B, F}), *mu = call.output(5, {B, C});
    if (B == 0) return;
    const int64_t H = x.sizes[2], W = x.sizes[3];
    std::vector<float> found(B * S);
    InteractionLevelForward p{};
    p.reduce.shape = {B, C, H, W, P};
    p.reduce.x = tensor(x.data, C * H * W, H * W, int64_t{1});
    p.reduce.weight = tensor(proj_weight.data, C, int64_t{1});
    p.reduce.bias = tensor(proj_bias.data, int64_t{1});
    p.reduce.attn = tensor(attn.data, int64_t{1});
    p.reduce.threads = threads;
    p.gating.shape.features = F;
    p.gating.shape.hidden = hidden;
    p.gating.shape.queries = Q;
    p.gating.tau = tau_;
    p.gating.eps = eps_;
    p.gating.alignment = alignment;
    p.gating.f = f.data;
    p.gating.normaliser = normaliser.data;
    p.gating.weights = addresses;
    p.gating.norm_mean = norm_mean.data;  // not written in inference
    p.gating.norm_var = norm_var.data;
    p.gating.mu = mu;
    p.gating.clf = clf;
    p.gating.enhanced = enhanced;
    p.gating.gates = gates;
    for (int64_t s = 0; s < S; ++s) p.gating.signals[s] = found.data() + s * B;
    p.y = tensor(seg, C * H * W, H * W, int64_t{1});
    check(interaction_level_forward(cpu_kernels(), p));
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t s = 0; s < S; ++s) signals[b * S + s] = found[s * B + b];
    }
  }

 private:
  static constexpr size_t kFirstWeight = 6;
  float tau_, eps_;
};

}  // namespace

const std::vector<NodeKind>& node_kinds() {
  static const std::vector<NodeKind> kinds = [] {
    std::vector<NodeKind> all = {
        {"SS2D", 6, 3, 1, make<SS2DKernel>, [](const NodeShapes& s) { s.same(0, 0); }},
        {"SelectiveScan", 5, 3, 2, make<SelectiveScanKernel>,
         [](const NodeShapes& s) {
           s.same(0, 0);
           s.set(1, {of_input(0, 0), of_input(0, 1), of_input(2, 1)});
         }},
        {"DwconvSilu", 2, 1, 1, make<DwconvSiluKernel>,
         [](const NodeShapes& s) { s.set(0, {of_input(0, 0), of_input(0, 1), of_input(0, 2), of_input(1, 0)}); }},
        {"NormGate", 1, 3, 1, make<NormGateKernel>, [](const NodeShapes& s) { s.same(0, 0); }},
        {"InteractionReduce", 1, 3, 4, make<InteractionReduceKernel>,
         [](const NodeShapes& s) {
           for (size_t i = 0; i < 2; ++i) s.set(i, {of_input(0, 0), of_input(0, 1)});
           s.set(2, {of_input(0, 0)});
         }},
        {"TaskInteraction", 20, 4, 6, make<TaskInteractionKernel>,
         [](const NodeShapes& s) {
           s.same(0, 0);
           s.same(1, 1);
           s.set(2, {of_input(0, 0), number(2)});
           s.set(3, {of_input(0, 0), of_input(16, 1)});
           s.same(4, 1);
           s.set(5, {of_input(0, 0), of_input(0, 1)});
         }},
    };
    for (const auto* more : {&sequence_node_kinds(), &map_node_kinds()})
      all.insert(all.end(), more->begin(), more->end());
    return all;
  }();
  return kinds;
}

}  // namespace mtlkit
