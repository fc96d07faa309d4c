// The scan that ss2d and selective_scan share: a tile of tokens in shared memory, the states in registers.
//
// A block owns kChannels channels; kLanes neighbouring threads share a channel and keep kStates states each. A tile is
// kTokens tokens in scan order. It holds the time step dt and dt u per token and channel, and the rows B and C per
// token, laid out so that all loads from shared memory are broadcast or contiguous. Padding tokens have dt = 0 and rows
// of zeros, so they do not change the states.
//
// With kResets, the time step of a token that begins a sequence has its sign bit set, and neither the state nor, in the
// backward pass, its gradient crosses this token. They are replaced by 0 rather than multiplied by it, because they may
// be infinite.
//
// Decays are powers of two: a = exp(dt A) = exp2(dt A log2(e)); the registers hold A log2(e).
#pragma once

#include "common/ss2d.h"
#include "cuda/device.cuh"

namespace mtlkit::cuda {

inline constexpr int kGroupTokens = 4;  // tokens whose sums over lanes are computed together

// How the threads of one scan divide channels and states.
template <int kStatesPerLane, int kLanesPerChannel, int kChannelsPerBlock, int kTokensPerTile>
struct Layout {
  static constexpr int kStates = kStatesPerLane, kLanes = kLanesPerChannel, kChannels = kChannelsPerBlock;
  static constexpr int kTokens = kTokensPerTile;
  static constexpr int kPadded = kStates * kLanes;  // N, rounded up
  static constexpr int kThreads = kChannels * kLanes;
  static constexpr int kPitch = kChannels + 1;  // pitch of the tile of inputs, in channels
  static constexpr int kSumPitch =
      kChannels + 9;  // pitch of the tile of outputs: few bank conflicts along channels, none along tokens
  static constexpr int kQuad = kStates < 4 ? kStates : 4;
};

__device__ inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Division of numbers below 2^31 by a divisor that is known before the launch.
struct Divisor {
  uint32_t value, multiplier;
  int shift;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : value(divisor), shift(31) {
    while ((uint64_t{1} << (shift - 31)) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ uint32_t divide(uint32_t number) const {
    return static_cast<uint32_t>(uint64_t{number} * multiplier >> shift);
  }
};

struct Softplus {
  float value, slope;
};

// log(1 + exp(x)) and its derivative, to the relative precision of float for every x: with e = exp(-|x|), it is
// max(x, 0) + log(1 + e), and log(1 + e) = 2 atanh(e / (2 + e)) by its series.
__device__ inline Softplus softplus(float x) {
  const float e = exp2_approx(-kLog2E * fabsf(x));
  const float r = e * reciprocal_approx(2.0f + e), s = r * r;
  float series = 1.0f / 13;
  series = series * s + 1.0f / 11;
  series = series * s + 1.0f / 9;
  series = series * s + 1.0f / 7;
  series = series * s + 1.0f / 5;
  series = series * s + 1.0f / 3;
  series = series * s + 1.0f;
  return {fmaxf(x, 0.0f) + 2.0f * r * series, (x < 0.0f ? e : 1.0f) * reciprocal_approx(1.0f + e)};
}

__device__ inline float element(const char* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kBFloat16:
      return to_float(reinterpret_cast<const bf16*>(data)[index]);
    case DType::kFloat16:
      return to_float(reinterpret_cast<const f16*>(data)[index]);
    default:
      return reinterpret_cast<const float*>(data)[index];
  }
}

// Allocates parts of the shared memory; on the host, starting from null, it computes their size.
class Arena {
 public:
  __host__ __device__ explicit Arena(char* memory) : at_(memory) {}

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(at_);
    at_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return result;
  }
  __host__ __device__ char* end() const { return at_; }

 private:
  char* at_;
};

// A log2(e), kept finite: padding tokens have dt = 0 and must not change the state, but 0 times infinity is NaN.
__device__ inline float decay_rate(float A) {
  constexpr float kLowest = -3.402823466e38f;
  const float rate = kLog2E * A;
  return rate < kLowest ? kLowest : rate;
}

// --- states ----------------------------------------------------------------------------------------------------------

template <typename L>
struct States {
  float values[L::kStates];
};

template <typename L>
__device__ inline Pack<float, L::kQuad> load_quad(const float* row, int first) {
  return load<L::kQuad>(row + first);
}

// The states of a lane in a row of kPadded floats.
template <typename L>
__device__ inline States<L> load_states(const float* row, int lane) {
  States<L> states;
#pragma unroll
  for (int i = 0; i < L::kStates; i += L::kQuad) {
    const auto quad = load_quad<L>(row + lane * L::kStates, i);
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) states.values[i + q] = quad.values[q];
  }
  return states;
}

template <typename L>
__device__ inline void store_states(float* row, int lane, const States<L>& states) {
#pragma unroll
  for (int i = 0; i < L::kStates; i += L::kQuad) {
    Pack<float, L::kQuad> quad;
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) quad.values[q] = states.values[i + q];
    store(row + lane * L::kStates + i, quad);
  }
}

template <typename L>
__device__ inline States<L> zero_states() {
  States<L> states;
#pragma unroll
  for (int i = 0; i < L::kStates; ++i) states.values[i] = 0.0f;
  return states;
}

// The time step of a token, without its sign.
template <bool kResets>
__device__ inline float time_of(float step) {
  return kResets ? fabsf(step) : step;
}

// The states after `chunks` chunks, given the states h before them: h = exp2(A sum dt) h + end, chunk by chunk.
// add_step defines the sum for a chunk in which a sequence begins. `ends` and `steps` point to the first chunk's
// values; the next chunk's are `end_stride` and `step_stride` floats further.
template <typename L, bool kResets = false>
__device__ inline States<L> carry_in(States<L> h, const States<L>& A, int lane, int chunks, const float* ends,
                                     int64_t end_stride, const float* steps, int64_t step_stride) {
#pragma unroll 4
  for (int chunk = 0; chunk < chunks; ++chunk, ends += end_stride, steps += step_stride) {
    const States<L> end = load_states<L>(ends, lane);
    const float step = *steps;
#pragma unroll
    for (int i = 0; i < L::kStates; ++i) {
      const float passed = exp2_approx(step * A.values[i]) * h.values[i];
      h.values[i] = (kResets && has_sign(step) ? 0.0f : passed) + end.values[i];
    }
  }
  return h;
}

// --- sums over the lanes of a channel --------------------------------------------------------------------------------

// Sums values[i] over the kLanes lanes of a channel. Afterwards lane l holds the sums of index l, l + kShared, ... in
// values[0], values[1], ..., where kShared = min(kCount, kLanes). Each exchange halves the number of values.
template <int kLanes, int kCount>
__device__ inline void sum_over_lanes(float (&values)[kCount], int lane) {
  int left = kCount;
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) {
    const bool upper = lane & mask;
    if (left > 1) {
      left /= 2;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= left) break;
        const float sent = upper ? values[2 * i] : values[2 * i + 1];
        const float kept = upper ? values[2 * i + 1] : values[2 * i];
        values[i] = kept + shuffle_xor(sent, mask);
      }
    } else {
      values[0] += shuffle_xor(values[0], mask);
    }
  }
}

// --- forward ---------------------------------------------------------------------------------------------------------

struct alignas(8) Step {
  float dt, dtu;  // dtu = dt u
};

// The rows B or C of a tile, for one thread: its states' values at a token.
template <typename L>
struct SharedRows {
  const float* first;  // its states at the first token; tokens are kPadded floats apart

  __device__ Pack<float, L::kQuad> quad(int token, int state) const {
    return load<L::kQuad>(first + token * L::kPadded + state);
  }
  __device__ SharedRows from(int token) const { return {first + token * L::kPadded}; }
};

// B or C that are equal at all tokens of a channel.
template <typename L>
struct OwnRows {
  States<L> own;

  __device__ Pack<float, L::kQuad> quad(int, int state) const {
    Pack<float, L::kQuad> quad;
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) quad.values[q] = own.values[state + q];
    return quad;
  }
  __device__ const OwnRows& from(int) const { return *this; }
};

// Advances the states over `tokens` (a multiple of kGroupTokens) tokens and adds y to the tile of sums, which already
// holds the skip term D u. `x` and `sums` point at the thread's channel.
template <typename L, bool kResets = false, typename RowsB, typename RowsC>
__device__ inline void scan_tile(const Step* x, RowsB B, RowsC C, float* sums, int tokens, int lane, const States<L>& A,
                                 States<L>& h) {
  constexpr int kShared = L::kLanes < kGroupTokens ? L::kLanes : kGroupTokens;
  for (int token = 0; token < tokens; token += kGroupTokens) {
    float y[kGroupTokens];
#pragma unroll
    for (int j = 0; j < kGroupTokens; ++j) {
      const Step step = x[j * L::kPitch];
      y[j] = 0.0f;
#pragma unroll
      for (int i = 0; i < L::kStates; i += L::kQuad) {
        const auto b = B.quad(j, i), c = C.quad(j, i);
#pragma unroll
        for (int q = 0; q < L::kQuad; ++q) {
          float& state = h.values[i + q];
          const float before = kResets && has_sign(step.dt) ? 0.0f : state;
          state = exp2_approx(time_of<kResets>(step.dt) * A.values[i + q]) * before + step.dtu * b.values[q];
          y[j] += state * c.values[q];
        }
      }
    }
    sum_over_lanes<L::kLanes>(y, lane);
    if (lane < kShared) {
#pragma unroll
      for (int i = 0; i < kGroupTokens / kShared; ++i) sums[(lane + i * kShared) * L::kSumPitch] += y[i];
    }
    x += kGroupTokens * L::kPitch;
    B = B.from(kGroupTokens);
    C = C.from(kGroupTokens);
    sums += kGroupTokens * L::kSumPitch;
  }
}

// Adds a time step to a sum; the sum becomes -1 once a token begins a sequence.
template <bool kResets>
__device__ inline float add_step(float sum, float step) {
  return kResets && (has_sign(sum) || has_sign(step)) ? -1.0f : sum + step;
}

// Like scan_tile, without the outputs; adds the time steps to `steps`.
template <typename L, bool kResets = false, typename Rows>
__device__ inline void advance_tile(const Step* x, Rows B, int tokens, const States<L>& A, States<L>& h, float& steps) {
#pragma unroll 4
  for (int token = 0; token < tokens; ++token, x += L::kPitch, B = B.from(1)) {
    const Step step = *x;
    steps = add_step<kResets>(steps, step.dt);
#pragma unroll
    for (int i = 0; i < L::kStates; i += L::kQuad) {
      const auto b = B.quad(0, i);
#pragma unroll
      for (int q = 0; q < L::kQuad; ++q) {
        float& state = h.values[i + q];
        const float before = kResets && has_sign(step.dt) ? 0.0f : state;
        state = exp2_approx(time_of<kResets>(step.dt) * A.values[i + q]) * before + step.dtu * b.values[q];
      }
    }
  }
}

// --- backward --------------------------------------------------------------------------------------------------------

// With g the gradient of a state, the carry is the part that passes to the previous token: a[t] g[t].
//
// A tile is first scanned upwards, to get the states at the start of each group of kGroupTokens tokens. Then the groups
// are processed downwards: each group is scanned up again, keeping decays and products in registers, and then down.

// A token's inputs; after its group has been processed, `u` holds the gradient of u.
struct alignas(16) Token {
  float dt, dtu, dy, u;
};

template <typename L>
struct Group {
  float decay[kGroupTokens][L::kStates];    // a
  float product[kGroupTokens][L::kStates];  // a[t] h[t-1]; later g dtu, the channel's part of dB
};

// Advances the states over a group's tokens.
template <typename L, bool kResets = false, typename Rows>
__device__ inline void advance_group(const Token* tokens, const Rows& B, const States<L>& A, States<L>& h) {
#pragma unroll
  for (int j = 0; j < kGroupTokens; ++j) {
    const Token token = tokens[j * L::kPitch];
#pragma unroll
    for (int i = 0; i < L::kStates; i += L::kQuad) {
      const auto b = B.quad(j, i);
#pragma unroll
      for (int q = 0; q < L::kQuad; ++q) {
        float& state = h.values[i + q];
        const float before = kResets && has_sign(token.dt) ? 0.0f : state;
        state = exp2_approx(time_of<kResets>(token.dt) * A.values[i + q]) * before + token.dtu * b.values[q];
      }
    }
  }
}

// Scans up through a group: fills `group` and passes dy h, the channel's part of dC, to keep(token, first state, quad).
template <typename L, bool kResets = false, typename Rows, typename Keep>
__device__ inline void rebuild_group(const Token* tokens, const Rows& B, const States<L>& A, States<L> h,
                                     Group<L>& group, Keep keep) {
#pragma unroll
  for (int j = 0; j < kGroupTokens; ++j) {
    const Token token = tokens[j * L::kPitch];
#pragma unroll
    for (int i = 0; i < L::kStates; i += L::kQuad) {
      const auto b = B.quad(j, i);
      Pack<float, L::kQuad> part;
#pragma unroll
      for (int q = 0; q < L::kQuad; ++q) {
        float& state = h.values[i + q];
        const float before = kResets && has_sign(token.dt) ? 0.0f : state;
        group.decay[j][i + q] = exp2_approx(time_of<kResets>(token.dt) * A.values[i + q]);
        group.product[j][i + q] = group.decay[j][i + q] * before;
        state = group.product[j][i + q] + token.dtu * b.values[q];
        part.values[q] = token.dy * state;
      }
      keep(j, i, part);
    }
  }
}

// Scans down through a group: leaves the channel's part of dB in group.product, adds to dA, and returns for each token,
// summed over the thread's states, the gradient of dt u and that of dt (with A log2(e) in place of A).
template <typename L, bool kResets = false, typename RowsB, typename RowsC>
__device__ inline void descend_group(const Token* tokens, const RowsB& B, const RowsC& C, const States<L>& A,
                                     Group<L>& group, States<L>& carry, States<L>& dA, float (&ddtu)[kGroupTokens],
                                     float (&ddt)[kGroupTokens]) {
#pragma unroll
  for (int j = kGroupTokens - 1; j >= 0; --j) {
    const Token token = tokens[j * L::kPitch];
    ddtu[j] = 0.0f;
    ddt[j] = 0.0f;
#pragma unroll
    for (int i = 0; i < L::kStates; i += L::kQuad) {
      const auto b = B.quad(j, i), c = C.quad(j, i);
#pragma unroll
      for (int q = 0; q < L::kQuad; ++q) {
        const float g = carry.values[i + q] + token.dy * c.values[q];
        const float through = g * group.product[j][i + q];
        ddtu[j] += g * b.values[q];
        ddt[j] += through * A.values[i + q];
        dA.values[i + q] += through * token.dt;  // `through` is 0 if the step has its sign bit set
        const float passed = g * group.decay[j][i + q];
        carry.values[i + q] = kResets && has_sign(token.dt) ? 0.0f : passed;
        group.product[j][i + q] = g * token.dtu;
      }
    }
  }
}

// Scans down through `count` tokens and updates only the carry; adds their time steps to `steps`.
template <typename L, bool kResets = false, typename Rows>
__device__ inline void descend_tile(const Token* tokens, const Rows& C, int count, const States<L>& A, States<L>& carry,
                                    float& steps) {
#pragma unroll 4
  for (int j = count - 1; j >= 0; --j) {
    const Token token = tokens[j * L::kPitch];
    steps = add_step<kResets>(steps, token.dt);
#pragma unroll
    for (int i = 0; i < L::kStates; i += L::kQuad) {
      const auto c = C.quad(j, i);
#pragma unroll
      for (int q = 0; q < L::kQuad; ++q) {
        float& value = carry.values[i + q];
        value = (value + token.dy * c.values[q]) * exp2_approx(time_of<kResets>(token.dt) * A.values[i + q]);
        if (kResets && has_sign(token.dt)) value = 0.0f;
      }
    }
  }
}

// Sums over the channels of a block: each thread writes its part of (token, channel, state) to shared memory, and after
// a barrier the parts are added in a fixed order.
template <typename L>
struct ChannelSums {
  // A pitch that is an odd multiple of 16 floats puts the loads of a warp in different banks.
  static constexpr int kTokenPitch = L::kChannels * L::kPadded + 16;
  static constexpr int kFloats = kGroupTokens * kTokenPitch;

  // The address of the thread's states.
  __device__ static float* place(float* parts, int token, int channel, int state) {
    return parts + token * kTokenPitch + channel * L::kPadded + state;
  }

  static constexpr int kSums = kGroupTokens * L::kPadded;
  static constexpr int kPieces = L::kThreads > kSums ? L::kThreads / kSums : 1;  // neighbouring threads share a sum
  static constexpr int kRounds = kSums * kPieces / L::kThreads;
  static_assert(kPieces <= kWarp && L::kChannels % kPieces == 0 && kRounds * L::kThreads == kSums * kPieces);

  // Calls use(round, token, state, sum) for each token of the group and each state, on one thread each.
  template <typename Use>
  __device__ static void sum(const float* parts, int thread, Use use) {
    const int piece = thread % kPieces;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int index = (round * L::kThreads + thread) / kPieces, token = index / L::kPadded,
                state = index % L::kPadded;
      const float* part = place(const_cast<float*>(parts), token, piece, state);
      float sum = *part;
#pragma unroll
      for (int i = 1; i < L::kChannels / kPieces; ++i) sum += part[i * kPieces * L::kPadded];
#pragma unroll
      for (int mask = 1; mask < kPieces; mask *= 2) sum += shuffle_xor(sum, mask);
      if (piece == 0) use(round, token, state, sum);
    }
  }
};

}  // namespace mtlkit::cuda
