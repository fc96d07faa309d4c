// The operators of the domain "mtlkit" on sequences of tokens, (B, L, C), with the channels of a token contiguous.
#include <algorithm>

#include "cpu/dispatch.h"
#include "inference/kernel_node.h"

namespace mtlkit {
namespace {

// Throws unless x is (B, L, C) with the channels from `first` to `first + channels`.
void check_tokens(const Input& x, int64_t first, int64_t channels) {
  x.check_rank("(B, L, C)", 3, 1);
  if (x.sizes[2] < first + channels) {
    x.check_shape("(B, L, C or more)", {x.sizes[0], x.sizes[1], first + channels});
  }
}

// ---- DirectionalScan ------------------------------------------------------------------------------------------------

// Throws unless every direction visits only existing tokens, each at most once.
void check_order(const Input& order, int64_t tokens) {
  const int64_t steps = order.sizes.back(), rows = steps > 0 ? order.elements() / steps : 0;
  std::vector<int64_t> visited(tokens, -1);  // the last row that visited each token
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t token = order.integers()[r * steps + t];
      if (token < 0 || token >= tokens) {
        throw Refused("order: expected tokens from 0 to " + std::to_string(tokens - 1) + ", got " +
                      std::to_string(token));
      }
      if (visited[token] == r) {
        throw Refused("order: expected each token at most once in a direction, got token " + std::to_string(token) +
                      " twice");
      }
      visited[token] = r;
    }
  }
}

// y = directional_scan(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, order), the sum of the directions, or each. Inputs: u
// (B, L, D), or (B, K, L, D) if each direction has its own; x_dbl (B, L, K, R + 2 N); order (K, T) or (B, K, T);
// seq_idx (B, L) or none; initial_state (B, K, D, N) or none.
template <bool merge>
class DirectionalScanKernel : public Kernel {
 public:
  explicit DirectionalScanKernel(const NodeAttributes&) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input u = call.input("u", 0), x_dbl = call.input("x_dbl", 1), dt_weight = call.input("dt_weight", 2);
    const Input dt_bias = call.input("dt_bias", 3), A_logs = call.input("A_logs", 4), Ds = call.input("Ds", 5);
    const Input order = call.input("order", 6), seq_idx = call.input("seq_idx", 7);
    const Input initial = call.input("initial_state", 8);
    dt_weight.check_rank("(K, D, R)", 3, 0);
    A_logs.check_rank("(K D, N)", 2);
    const int64_t K = dt_weight.sizes[0], D = dt_weight.sizes[1], R = dt_weight.sizes[2], N = A_logs.sizes[1];
    const bool own_inputs = u.sizes.size() == 4, own_orders = order.sizes.size() == 3;
    u.check_rank(own_inputs ? "(B, K, L, D)" : "(B, L, D) or (B, K, L, D)", own_inputs ? 4 : 3, 1);
    const int64_t B = u.sizes[0], L = u.sizes[u.sizes.size() - 2];
    u.check_shape(own_inputs ? "(B, K, L, D)" : "(B, L, D)", own_inputs ? Sizes{B, K, L, D} : Sizes{B, L, D});
    dt_bias.check_shape("(K, D)", {K, D});
    A_logs.check_shape("(K D, N), N from 1 to 256,", {K * D, std::clamp<int64_t>(N, 1, kMostStates)});
    Ds.check_shape("(K D,)", {K * D});
    if (x_dbl.sizes.size() == 3) {
      x_dbl.check_shape("(B, L, K (R + 2 N))", {B, L, K * (R + 2 * N)});
    } else {
      x_dbl.check_shape("(B, L, K, R + 2 N)", {B, L, K, R + 2 * N});
    }
    order.check_rank(own_orders ? "(B, K, T)" : "(K, T) or (B, K, T)", own_orders ? 3 : 2, own_orders ? 1 : 0);
    const int64_t T = order.sizes.back();
    order.check_shape(own_orders ? "(B, K, T)" : "(K, T)", own_orders ? Sizes{B, K, T} : Sizes{K, T});
    check_order(order, L);
    if (seq_idx.given) seq_idx.check_shape("(B, L)", {B, L});
    if (initial.given) initial.check_shape("(B, K, D, N)", {B, K, D, N});

    float* y = call.output(0, merge ? Sizes{B, L, D} : Sizes{B, K, L, D});
    float* last = call.output(1, {B, K, D, N});
    if (B == 0) return;
    const std::vector<uint8_t> starts = seq_idx.given ? starts_of(seq_idx, order, B, K) : std::vector<uint8_t>();
    DirectionalScanForward p{};
    p.shape = {B, K, D, 1, L, T, N, R};
    p.own_inputs = own_inputs;
    p.merge = merge;
    p.u = tokens(u.data, own_inputs ? K : 0, L, D);
    p.y = tokens(y, merge ? 0 : K, L, D);
    p.x_dbl = x_dbl.data;
    p.dt_weight = tensor(dt_weight.data, D * R, R, int64_t{1});
    p.dt_bias = tensor(dt_bias.data, D, int64_t{1});
    p.A_logs = tensor(A_logs.data, N, int64_t{1});
    p.Ds = tensor(Ds.data, int64_t{1});
    p.order = order.integers();
    p.own_orders = own_orders;
    p.starts = seq_idx.given ? starts.data() : nullptr;
    p.initial_state = tensor(initial.data, K * D * N, D * N, N, int64_t{1});
    p.last_state = last;
    p.threads = threads;
    check(cpu_kernels().directional_scan_forward(p));
  }

 private:
  // Tokens (B, L, D) or (B, K, L, D) as the kernel's images of one row, (B, K, D, 1, L).
  static Tensor<5> tokens(float* data, int64_t directions, int64_t L, int64_t D) {
    const int64_t all = std::max<int64_t>(directions, 1) * L * D;
    return tensor(data, all, directions ? L * D : 0, int64_t{1}, int64_t{0}, D);
  }

  // Flags for the steps where a new sequence begins, (B, K, T).
  static std::vector<uint8_t> starts_of(const Input& seq_idx, const Input& order, int64_t B, int64_t K) {
    const int64_t L = seq_idx.sizes[1], T = order.sizes.back();
    const bool own = order.sizes.size() == 3;
    std::vector<uint8_t> starts(B * K * T);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t k = 0; k < K; ++k) {
        const int32_t* visits = order.integers() + ((own ? b * K : 0) + k) * T;
        const int32_t* sequence = seq_idx.integers() + b * L;
        for (int64_t t = 1; t < T; ++t) {
          starts[(b * K + k) * T + t] = sequence[visits[t]] != sequence[visits[t - 1]];
        }
      }
    }
    return starts;
  }
};

constexpr uint64_t kOrders = 1 << 6 | 1 << 7;  // order and seq_idx

void set_last_state(const NodeShapes& s) { s.set(1, {of_input(0, 0), of_input(2, 0), of_input(2, 1), of_input(4, 1)}); }

// ---- CausalConv1d ---------------------------------------------------------------------------------------------------

// y = causal_conv1d(x, weight, bias), with SiLU if the attribute silu is 1, and the last w - 1 tokens. Inputs: x (B, L,
// C), read from channel `offset` (an attribute) on; weight (D, w); bias (D) or none; seq_idx (B, L) or none;
// initial_states (B, D, w - 1) or none.
class CausalConv1dKernel : public Kernel {
 public:
  explicit CausalConv1dKernel(const NodeAttributes& attributes)
      : silu_(attributes.integer("silu", 0) != 0), offset_(attributes.integer("offset", 0)) {
    check_attribute(offset_ >= 0, "offset: expected a number that is at least 0");
  }

  void compute(const NodeCall& call, int threads) const override {
    const Input x = call.input("x", 0), weight = call.input("weight", 1), bias = call.input("bias", 2);
    const Input seq_idx = call.input("seq_idx", 3), initial = call.input("initial_states", 4);
    weight.check_rank("(D, w)", 2, 0);
    const int64_t D = weight.sizes[0], w = weight.sizes[1];
    weight.check_shape("(D, w), w from 2 to 4,", {D, std::clamp<int64_t>(w, 2, kMaxWidth)});
    check_tokens(x, offset_, D);
    const int64_t B = x.sizes[0], L = x.sizes[1], C = x.sizes[2];
    if (bias.given) bias.check_shape("(D,)", {D});
    if (seq_idx.given) seq_idx.check_shape("(B, L)", {B, L});
    if (initial.given) initial.check_shape("(B, D, w - 1)", {B, D, w - 1});
    check_attribute(!(seq_idx.given && initial.given), "seq_idx: expected none with initial_states");

    float *y = call.output(0, {B, L, D}), *last = call.output(1, {B, D, w - 1});
    if (B == 0) return;
    CausalConv1dForward p{};
    p.shape = {B, D, L, w};
    p.x = tensor(x.data + offset_, L * C, int64_t{1}, C);
    p.weight = tensor(weight.data, w, int64_t{1});
    p.bias = tensor(bias.data, int64_t{1});
    p.seq_idx = seq_idx.integers();
    p.initial_states = tensor(initial.data, D * (w - 1), w - 1, int64_t{1});
    p.y = tensor(y, L * D, int64_t{1}, D);
    p.silu = silu_;
    p.threads = threads;
    check(cpu_kernels().causal_conv1d_forward(p));
    for (int64_t b = 0; b < B; ++b) {  // the last tokens of the concatenated initial states and x
      for (int64_t d = 0; d < D; ++d) {
        for (int64_t i = 0; i < w - 1; ++i) {
          const int64_t token = L - (w - 1) + i, at = (b * D + d) * (w - 1);
          const float before = initial.given && token < 0 ? initial.data[at + (w - 1) + token] : 0;
          last[at + i] = token < 0 ? before : x.data[(b * L + token) * C + offset_ + d];
        }
      }
    }
  }

 private:
  bool silu_;
  int64_t offset_;
};

}  // namespace

const std::vector<NodeKind>& sequence_node_kinds() {
  static const std::vector<NodeKind> kinds = {
      {"DirectionalScan", 7, 2, 2, make<DirectionalScanKernel<true>>,
       [](const NodeShapes& s) {
         s.set(0, {of_input(0, 0), of_input(1, 1), of_input(2, 1)});
         set_last_state(s);
       },
       kOrders},
      {"DirectionalScans", 7, 2, 2, make<DirectionalScanKernel<false>>,
       [](const NodeShapes& s) {
         s.set(0, {of_input(0, 0), of_input(2, 0), of_input(1, 1), of_input(2, 1)});
         set_last_state(s);
       },
       kOrders},
      {"CausalConv1d", 2, 3, 2, make<CausalConv1dKernel>,
       [](const NodeShapes& s) { s.set(0, {of_input(0, 0), of_input(0, 1), of_input(1, 0)}); }, uint64_t{1} << 3},
  };
  return kinds;
}

}  // namespace mtlkit
