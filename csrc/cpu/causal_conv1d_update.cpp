// Decoding step of a depthwise causal convolution: processes the next tokens, given a state of the last ones.
//
// A work item is a vector of channels of one sequence. Its state and its new tokens are unpacked into one contiguous
// buffer, from which the filter reads, and a window of it is written back as the new state. There is a direct path for
// one float32 token with each channel's tokens contiguous, the layout of a Mamba block: unpacking would cost more than
// the convolution.
#include "cpu/causal_conv1d.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kLeastItems = 32;  // per thread

template <typename T>
struct Update {
  const CausalConv1dUpdate& p;
  int64_t blocks, items, size;  // size: of a thread's buffer, for state, old and new tokens, and results
  int threads;

  explicit Update(const CausalConv1dUpdate& params)
      : p(params),
        blocks(ceil_div(p.shape.channels, kLanes<T>)),
        items(p.shape.batch * blocks),
        size(p.kept + p.shape.width - 1 + 2 * p.shape.tokens),
        threads(static_cast<int>(max(1, min(p.threads, items / kLeastItems)))) {}

  int run() const {
    Scratch<Vec<T>> scratch(threads * size);
    if (!scratch.ok()) return kOutOfMemory;
    on_threads(threads, [&](int thread, int team) {
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const int64_t b = item / blocks, d = item % blocks * kLanes<T>;
        rows_of_floats() ? update_rows(b, d) : update(b, d, scratch.get() + thread * size);
      }
    });
    return kOk;
  }

  static void load(const Tensor<3>& t, int64_t b, int64_t d, int64_t channels, int64_t tokens, Vec<T>* to) {
    const int64_t* s = t.stride;
    load_tile<T>(at(t, b * s[0] + d * s[1]), t.dtype, s[1], s[2], channels, tokens, to);
  }

  static void store(const Tensor<3>& t, int64_t b, int64_t d, int64_t channels, int64_t tokens, const Vec<T>* from) {
    const int64_t* s = t.stride;
    store_tile<T>(at(t, b * s[0] + d * s[1]), t.dtype, s[1], s[2], channels, tokens, from);
  }

  bool rows_of_floats() const {
    const auto plain = [](DType dtype) { return dtype == DType::kFloat32; };
    return sizeof(T) == sizeof(float) && p.shape.tokens == 1 && !p.cache_seqlens && !p.conv_state_indices &&
           p.conv_state.stride[2] == 1 && p.weight.stride[1] == 1 && plain(p.x.dtype) && plain(p.conv_state.dtype) &&
           plain(p.weight.dtype) && (!p.bias || plain(p.bias.dtype));
  }

  void update_rows(int64_t b, int64_t d) const {
    const int64_t channels = min(kLanes<T>, p.shape.channels - d);
    Vec<T> y{};
    switch (p.shape.width) {
      case 2:
        convolve_rows<2>(b, d, channels, y);
        break;
      case 3:
        convolve_rows<3>(b, d, channels, y);
        break;
      default:
        convolve_rows<4>(b, d, channels, y);
    }
    if (p.silu) y = silu(y);
    store(p.y, b, d, channels, 1, &y);
  }

  template <int kWidth>
  void convolve_rows(int64_t b, int64_t d, int64_t channels, Vec<T>& y) const {
    const float* x = static_cast<const float*>(p.x.data) + b * p.x.stride[0] + d * p.x.stride[1];
    const float* weight = static_cast<const float*>(p.weight.data) + d * p.weight.stride[0];
    const float* bias = static_cast<const float*>(p.bias.data) + d * p.bias.stride[0];
    float* state = static_cast<float*>(p.conv_state.data) + b * p.conv_state.stride[0] + d * p.conv_state.stride[1];
    T a[kLanes<T>] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const float token = x[c * p.x.stride[1]];
      const float* before = state + p.kept - (kWidth - 1);
      float sum = p.bias ? bias[c * p.bias.stride[0]] : 0;
      for (int i = 0; i < kWidth - 1; ++i) sum += weight[i] * before[i];
      a[c] = sum + weight[kWidth - 1] * token;
      for (int64_t i = 1; i < p.kept; ++i) state[i - 1] = state[i];
      state[p.kept - 1] = token;
      weight += p.weight.stride[0];
      state += p.conv_state.stride[1];
    }
    std::memcpy(&y, a, sizeof y);
  }

  void update(int64_t b, int64_t d, Vec<T>* state) const {
    const int64_t channels = min(kLanes<T>, p.shape.channels - d), tokens = p.shape.tokens;
    const int64_t width = p.shape.width, kept = p.kept, row = p.conv_state_indices ? p.conv_state_indices[b] : b;
    Vec<T>* const before = state + kept;
    Vec<T>* const x = before + width - 1;
    Vec<T>* const y = x + tokens;
    if (row < 0) {
      std::memset(y, 0, tokens * sizeof(Vec<T>));
      return store(p.y, b, d, channels, tokens, y);
    }

    load(p.conv_state, row, d, channels, kept, state);
    load(p.x, b, d, channels, tokens, x);
    const int64_t next = p.cache_seqlens ? (p.cache_seqlens[b] % kept + kept) % kept : 0;  // of the first new token
    for (int64_t i = 0; i < width - 1; ++i) before[i] = state[(next + kept - (width - 1) + i) % kept];

    Vec<T> taps[kMaxWidth], bias{};
    load_tile<T>(at(p.weight, d * p.weight.stride[0]), p.weight.dtype, p.weight.stride[0], p.weight.stride[1], channels,
                 width, taps);
    if (p.bias) load_tile<T>(at(p.bias, d * p.bias.stride[0]), p.bias.dtype, p.bias.stride[0], 0, channels, 1, &bias);
    for (int64_t t = 0; t < tokens; ++t) {
      Vec<T> a = bias;
      for (int64_t i = 0; i < width; ++i) a += taps[i] * before[t + i];
      y[t] = p.silu ? silu(a) : a;
    }
    store(p.y, b, d, channels, tokens, y);

    const int64_t newest = min(tokens, kept);
    if (p.cache_seqlens) {
      for (int64_t t = tokens - newest; t < tokens; ++t) state[(next + t) % kept] = x[t];
    } else {
      std::memmove(state, state + newest, (kept - newest) * sizeof(Vec<T>));
      std::memcpy(state + kept - newest, x + tokens - newest, newest * sizeof(Vec<T>));
    }
    store(p.conv_state, row, d, channels, kept, state);
  }
};

}  // namespace

int causal_conv1d_update(const CausalConv1dUpdate& p) {
  return p.use_double ? Update<double>(p).run() : Update<float>(p).run();
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
