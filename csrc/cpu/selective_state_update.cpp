// Decoding step of the selective scan: one token.
//
// A work item is a vector of channels of one head of one sequence. Per-channel values are computed for the vector. The
// states, one row per channel, are updated a vector of states at a time; a transposing sum turns their products with C
// into the outputs.
#include "cpu/selective_state_update.h"

#include "cpu/kernels.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kLeastItems = 8;  // per thread

// Loads the channels of an item, at element `offset` of a tensor whose channels are `stride` apart.
template <typename T, int kRank>
Vec<T> load_channels(const Tensor<kRank>& t, int64_t offset, int64_t stride, int64_t channels) {
  Vec<T> v;
  load_tile<T>(at(t, offset), t.dtype, stride, 0, channels, 1, &v);
  return v;
}

template <typename T>
void update(const SelectiveStateUpdate& p, int64_t b, int64_t h, int64_t d) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t channels = min(lanes, p.channels - d), group = h / (p.heads / p.groups);
  const int64_t row = p.state_batch_indices ? p.state_batch_indices[b] : b;
  const auto of_sequence = [&](const Tensor<3>& t) {
    const int64_t* s = t.stride;
    return load_channels<T>(t, b * s[0] + h * s[1] + d * s[2], s[2], channels);
  };
  const auto of_head = [&](const Tensor<2>& t) {
    return load_channels<T>(t, h * t.stride[0] + d * t.stride[1], t.stride[1], channels);
  };
  const auto store_y = [&](Vec<T> y) {
    const int64_t* s = p.y.stride;
    store_tile<T>(at(p.y, b * s[0] + h * s[1] + d * s[2]), p.y.dtype, s[2], 0, channels, 1, &y);
  };
  if (row < 0) return store_y(Vec<T>{});

  const Vec<T> x = of_sequence(p.x);
  Vec<T> dt = of_sequence(p.dt);
  if (p.dt_bias) dt += of_head(p.dt_bias);
  if (p.dt_softplus) dt = softplus(dt);
  const Vec<T> input = dt * x, rate = dt * kLog2E<T>;

  Vec<T> sums[lanes] = {};
  for (int64_t n = 0; n < p.states; n += lanes) {
    const int64_t states = min(lanes, p.states - n);
    const int64_t *s = p.state.stride, *a = p.A.stride;
    void* const address = at(p.state, row * s[0] + h * s[1] + d * s[2] + n * s[3]);
    Vec<T> state[lanes], A[lanes];
    load_tile<T>(address, p.state.dtype, s[3], s[2], states, channels, state);
    load_tile<T>(at(p.A, h * a[0] + d * a[1] + n * a[2]), p.A.dtype, a[2], a[1], states, channels, A);
    const auto of_group = [&](const Tensor<3>& t) {
      return load_channels<T>(t, b * t.stride[0] + group * t.stride[1] + n * t.stride[2], t.stride[2], states);
    };
    const Vec<T> B = of_group(p.B), C = of_group(p.C);
    for (int64_t i = 0; i < channels; ++i) {
      state[i] = exp2(splat(rate[i]) * A[i]) * state[i] + splat(input[i]) * B;
      sums[i] += state[i] * C;
    }
    store_tile<T>(address, p.state.dtype, s[3], s[2], states, channels, state);
  }

  Vec<T> y = sum_lanes<T>(sums);
  if (p.D) y += of_head(p.D) * x;
  if (p.z) y *= silu(of_sequence(p.z));
  store_y(y);
}

template <typename T>
int run(const SelectiveStateUpdate& p) {
  const int64_t blocks = ceil_div(p.channels, kLanes<T>), items = p.batch * p.heads * blocks;
  on_threads(max(1, min(p.threads, items / kLeastItems)), [&](int thread, int team) {
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      update<T>(p, item / blocks / p.heads, item / blocks % p.heads, item % blocks * kLanes<T>);
    }
  });
  return kOk;
}

}  // namespace

int selective_state_update(const SelectiveStateUpdate& p) { return p.use_double ? run<double>(p) : run<float>(p); }

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
