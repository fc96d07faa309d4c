// Backward pass of selective_scan: see selective_scan.h for how the work is divided, and ss2d/bwd.cu for how a tile is
// passed and where the sums go.
#include "cuda/launchers.h"
#include "cuda/selective_scan/selective_scan.cuh"

namespace mtlkit::cuda {
namespace {

template <typename L>
struct Shared {
  Token* tokens;  // (tokens, kPitch)
  float* slope;   // (tokens, kPitch): of the time step by delta; then the gradient of delta
  float *B, *C;   // (tokens, kPadded)
  float* parts;   // ChannelSums
  float** rows;   // (tokens): the block's part of the gradients of the token's B and C; null beyond the end
  Work<L>* work;  // while a tile is scanned, which needs every register
  float* starts;  // (groups - 1, kChannels, kPadded): states at the starts of groups, while a tile is at work; then
  char *raw_u, *raw_delta, *raw_dout, *raw_B, *raw_C;  // staged lines of the next tile
  char* end;

  __host__ __device__ explicit Shared(char* memory) {
    Arena arena(memory);
    tokens = arena.take<Token>(L::kTokens * L::kPitch);
    slope = arena.take<float>(L::kTokens * L::kPitch);
    B = arena.take<float>(L::kTokens * L::kPadded);
    C = arena.take<float>(L::kTokens * L::kPadded);
    parts = arena.take<float>(ChannelSums<L>::kFloats);
    rows = arena.take<float*>(L::kTokens);
    work = arena.take<Work<L>>(1);
    Arena states = arena;
    starts = states.take<float>((L::kTokens / kGroupTokens - 1) * L::kChannels * L::kPadded);
    raw_u = arena.take<char>(L::kChannels * kLinePitch<L>);
    raw_delta = arena.take<char>(L::kChannels * kLinePitch<L>);
    raw_dout = arena.take<char>(L::kChannels * kLinePitch<L>);
    raw_B = arena.take<char>(L::kPadded * kLinePitch<L>);
    raw_C = arena.take<char>(L::kPadded * kLinePitch<L>);
    end = states.end() > arena.end() ? states.end() : arena.end();
  }
};

template <bool kConstantB, bool kConstantC, typename L>
__device__ void stage(const Shared<L>& shared, const SelectiveScanBackward& params, const Units& units,
                      const Work<L>& work, const Tile<L>& tile) {
  const SelectiveScan& p = params.scan;
  const int states = static_cast<int>(p.shape.states);
  stage_channels<L>(shared.raw_u, p.u, work, tile, units.u);
  stage_channels<L>(shared.raw_delta, p.delta, work, tile, units.delta);
  stage_channels<L>(shared.raw_dout, params.dout, work, tile, units.dout);
  if constexpr (!kConstantB) stage_states<L>(shared.raw_B, p.B, states, work, tile, units.B);
  if constexpr (!kConstantC) stage_states<L>(shared.raw_C, p.C, states, work, tile, units.C);
  copy_async_commit();
}

// From the staged lines to the tile at work. With a gate, the gradients of the ungated output and of z.
template <bool kConstantB, bool kConstantC, bool kEndsOnly, typename L>
__device__ void unpack(const Shared<L>& shared, const SelectiveScanBackward& params, const Work<L>& work,
                       const Tile<L>& tile) {
  const SelectiveScan& p = params.scan;
  const int states = static_cast<int>(p.shape.states);
  if constexpr (!kConstantB) unpack_rows(shared.B, shared.raw_B, p.B.dtype, states, tile, work.thread);
  if constexpr (!kConstantC) unpack_rows(shared.C, shared.raw_C, p.C.dtype, states, tile, work.thread);
#pragma unroll 1
  for (int i = work.thread; i < L::kChannels * L::kTokens; i += L::kThreads) {
    const int channel = i / L::kTokens, token = i % L::kTokens, d = work.first_channel + channel;
    Token values = {};
    float slope = 0.0f;
    if (channel < work.channels && token < tile.tokens) {
      const float delta = element(shared.raw_delta + channel * kLinePitch<L>, p.delta.dtype, token);
      const Softplus step = time_step(p, delta, p.delta_bias ? p.delta_bias[d] : 0.0f);
      const float u = element(shared.raw_u + channel * kLinePitch<L>, p.u.dtype, token);
      float dy = element(shared.raw_dout + channel * kLinePitch<L>, params.dout.dtype, token);
      if (params.z) {
        const int64_t at = tile.first + token;
        const float z = read(params.z, offset_of(params.z, work.batch, d, at));
        const float gate = reciprocal_approx(1.0f + exp2_approx(-kLog2E * z));
        if constexpr (!kEndsOnly) {
          const float y = params.ungated[(work.batch * p.shape.channels + d) * p.shape.tokens + at];
          const float dz = dy * y * gate * (1.0f + z * (1.0f - gate));
          write(params.dz, offset_of(params.dz, work.batch, d, at), dz);
        }
        dy *= z * gate;
      }
      values = {step.value, step.value * u, dy, u};
      slope = step.slope;
    }
    shared.tokens[token * L::kPitch + channel] = values;
    shared.slope[token * L::kPitch + channel] = slope;
  }
  if constexpr (kEndsOnly || (kConstantB && kConstantC)) return;
  const int64_t image = (work.group_block * p.shape.batch + work.batch) * p.shape.groups + work.group;
  float* rows = params.drows + (image * p.shape.tokens + tile.first) * 2 * states;
  for (int token = work.thread; token < tile.padded; token += L::kThreads) {
    shared.rows[token] = token < tile.tokens ? rows + token * 2 * states : nullptr;
  }
}

// What a thread collects over all tokens.
template <typename L>
struct Collected {
  States<L> A, B, C;  // B and C where they are constant
  float skip, bias;
};

// The scan of one tile: dB and dC to global memory; the gradients of u and delta stay in `tokens` and `slope`.
template <bool kConstantB, bool kConstantC, typename L, typename RowsB, typename RowsC>
__device__ void descend(const Shared<L>& shared, const SelectiveScanBackward& params, const Work<L>& work,
                        const Tile<L>& tile, const RowsB& B, const RowsC& C, const States<L>& A, States<L>& carry,
                        Collected<L>& collected) {
  constexpr float kLn2 = 0.693147180559945309417f;
  constexpr int kShared = L::kLanes < kGroupTokens ? L::kLanes : kGroupTokens;
  const SelectiveScan& p = params.scan;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes, state = lane * L::kStates;
  const int states = static_cast<int>(p.shape.states), last = tile.padded / kGroupTokens - 1;
  const float skip = p.D && channel < work.channels ? p.D[work.first_channel + channel] : 0.0f;
  Token* tokens = shared.tokens + channel;
  float* starts = shared.starts + channel * L::kPadded;
  // The sums of the parts, to the rows of the group's tokens from `offset` on.
  const auto sum_parts = [&](int group, int offset) {
    ChannelSums<L>::sum(shared.parts, work.thread, [&](int, int j, int n, float sum) {
      float* row = shared.rows[group * kGroupTokens + j];
      if (n < states && row) row[offset + n] = sum;
    });
  };

  States<L> h = zero_states<L>();
  if (channel < work.channels) h = load_states<L>(checkpoint<L>(p, work, tile), lane);
#pragma unroll 1
  for (int group = 0; group < last; ++group) {
    store_states<L>(starts + group * L::kChannels * L::kPadded, lane, h);
    advance_group<L>(tokens + group * kGroupTokens * L::kPitch, B.from(group * kGroupTokens), A, h);
  }

#pragma unroll 1
  for (int group = last; group >= 0; --group) {
    Token* at = tokens + group * kGroupTokens * L::kPitch;
    const RowsB b = B.from(group * kGroupTokens);
    const RowsC c = C.from(group * kGroupTokens);
    if (group < last) h = load_states<L>(starts + group * L::kChannels * L::kPadded, lane);

    Group<L> kept;
    rebuild_group<L>(at, b, A, h, kept, [&](int j, int i, const Pack<float, L::kQuad>& part) {
      if constexpr (kConstantC) {
#pragma unroll
        for (int q = 0; q < L::kQuad; ++q) collected.C.values[i + q] += part.values[q];
      } else {
        store(ChannelSums<L>::place(shared.parts, j, channel, state + i), part);
      }
    });
    if constexpr (!kConstantC) block_sync();
    float ddtu[kGroupTokens], ddt[kGroupTokens];
    descend_group<L>(at, b, c, A, kept, carry, collected.A, ddtu, ddt);
    sum_over_lanes<L::kLanes>(ddtu, lane);
    sum_over_lanes<L::kLanes>(ddt, lane);
    if (lane < kShared) {
#pragma unroll
      for (int i = 0; i < kGroupTokens / kShared; ++i) {
        const int j = lane + i * kShared;
        const Token token = at[j * L::kPitch];
        float& slope = shared.slope[(group * kGroupTokens + j) * L::kPitch + channel];
        slope *= kLn2 * ddt[i] + ddtu[i] * token.u;
        collected.bias += slope;
        collected.skip += token.dy * token.u;
        at[j * L::kPitch].u = ddtu[i] * token.dt + skip * token.dy;
      }
    }
    if constexpr (!kConstantC) {
      sum_parts(group, states);
      block_sync();
    }
#pragma unroll
    for (int j = 0; j < kGroupTokens; ++j) {
#pragma unroll
      for (int i = 0; i < L::kStates; i += L::kQuad) {
        Pack<float, L::kQuad> part;
#pragma unroll
        for (int q = 0; q < L::kQuad; ++q) {
          part.values[q] = kept.product[j][i + q];
          if constexpr (kConstantB) collected.B.values[i + q] += part.values[q];
        }
        if constexpr (!kConstantB) store(ChannelSums<L>::place(shared.parts, j, channel, state + i), part);
      }
    }
    if constexpr (!kConstantB) {
      block_sync();
      sum_parts(group, 0);
      block_sync();
    }
  }
  if constexpr (kConstantB && kConstantC) block_sync();
}

template <typename L>
__device__ void store_gradients(const Shared<L>& shared, const SelectiveScanBackward& params, const Work<L>& work,
                                const Tile<L>& tile) {
#pragma unroll 2
  for (int i = work.thread; i < work.channels * L::kTokens; i += L::kThreads) {
    const int channel = i / L::kTokens, token = i % L::kTokens, d = work.first_channel + channel;
    if (token >= tile.tokens) continue;
    const int64_t at = tile.first + token;
    write(params.du, offset_of(params.du, work.batch, d, at), shared.tokens[token * L::kPitch + channel].u);
    write(params.ddelta, offset_of(params.ddelta, work.batch, d, at), shared.slope[token * L::kPitch + channel]);
  }
}

// The block's part of the gradients of the parameters.
template <bool kConstantB, bool kConstantC, typename L>
__device__ void store_parameters(const SelectiveScanBackward& params, const Work<L>& work, Collected<L>& collected) {
  const SelectiveScan& p = params.scan;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
  const int states = static_cast<int>(p.shape.states);
#pragma unroll
  for (int mask = 1; mask < L::kLanes; mask *= 2) {
    collected.skip += shuffle_xor(collected.skip, mask);
    collected.bias += shuffle_xor(collected.bias, mask);
  }
  if (channel >= work.channels) return;
  const int64_t part = work.batch * p.plan.chunks + work.chunk;
  float* row = params.dparameters + (part * p.shape.channels + work.first_channel + channel) * (3 * states + 2);
#pragma unroll
  for (int i = 0; i < L::kStates; ++i) {
    const int n = lane * L::kStates + i;
    if (n >= states) break;
    row[n] = collected.A.values[i];
    row[states + n] = kConstantB ? collected.B.values[i] : 0.0f;
    row[2 * states + n] = kConstantC ? collected.C.values[i] : 0.0f;
  }
  if (lane == 0) {
    row[3 * states] = collected.skip;
    row[3 * states + 1] = collected.bias;
  }
}

// The gradient of the state after the last token.
template <typename L>
__device__ States<L> last_gradient(const SelectiveScanBackward& params, const Work<L>& work) {
  const int channel = work.thread / L::kLanes, first = work.thread % L::kLanes * L::kStates;
  States<L> result = zero_states<L>();
  if (!params.dlast_state || channel >= work.channels) return result;
#pragma unroll
  for (int i = 0; i < L::kStates; ++i) {
    if (first + i >= params.scan.shape.states) break;
    const int64_t at = offset_of(params.dlast_state, work.batch, work.first_channel + channel, first + i);
    result.values[i] = read(params.dlast_state, at);
  }
  return result;
}

// kEndsOnly: finds the carry that each chunk leaves instead of the gradients. B is not read then, as if it were
// constant.
template <typename L, bool kConstantB, bool kConstantC, bool kEndsOnly>
__global__ void __launch_bounds__(L::kThreads, (L::kLanes > 4 || kConstantB || kConstantC ? 256 : 512) / L::kThreads)
    selective_scan_bwd_kernel(const SelectiveScanBackward params, const Units units) {
  const SelectiveScan& p = params.scan;
  Work<L> work(p);
  const Shared<L> shared(dynamic_shared());
  const int channel = work.thread / L::kLanes;
  const auto B = rows_of < kConstantB && !kEndsOnly > (p, work, shared.B, p.B);
  const auto C = rows_of<kConstantC>(p, work, shared.C, p.C);
  const States<L> A = load_A<L>(p, work);
  States<L> carry = zero_states<L>();
  if constexpr (!kEndsOnly) carry = chunk_start<L>(p, work, A, last_gradient<L>(params, work), true);
  Collected<L> collected = {};
  float steps = 0.0f;

  if (!kEndsOnly && work.thread == 0) *shared.work = work;
  stage<kConstantB, kConstantC>(shared, params, units, work, Tile<L>(p, work.first_tile + work.tiles - 1));
  for (int iteration = work.tiles - 1; iteration >= 0; --iteration) {
    const Tile<L> tile(p, work.first_tile + iteration);
    copy_async_wait();
    block_sync();
    unpack<kConstantB, kConstantC, kEndsOnly>(shared, params, work, tile);
    block_sync();
    if constexpr (kEndsOnly) {
      if (iteration > 0) stage<kConstantB, kConstantC>(shared, params, units, work, Tile<L>(p, tile.index - 1));
      descend_tile<L>(shared.tokens + channel, C, tile.padded, A, carry, steps);
    } else {
      descend<kConstantB, kConstantC>(shared, params, work, tile, B, C, A, carry, collected);
      work = *shared.work;
      work.thread = static_cast<int>(threadIdx.x);
      if (iteration > 0) stage<kConstantB, kConstantC>(shared, params, units, work, Tile<L>(p, tile.index - 1));
      store_gradients<L>(shared, params, work, tile);
    }
  }
  if constexpr (kEndsOnly) {
    store_chunk_end<L>(p, work, carry, steps);
  } else {
    store_parameters<kConstantB, kConstantC>(params, work, collected);
  }
}

template <typename L, bool kConstantB, bool kConstantC>
int launch(const SelectiveScanBackward& params, void* stream) {
  const SelectiveScan& p = params.scan;
  const int64_t blocks = blocks_of(p), tokens = p.shape.tokens;
  const auto shared_bytes = static_cast<unsigned>(reinterpret_cast<uintptr_t>(Shared<L>(nullptr).end));
  const Units units{copy_unit(p.u, tokens), copy_unit(p.delta, tokens), copy_unit(p.B, tokens), copy_unit(p.C, tokens),
                    copy_unit(params.dout, tokens)};
  if (blocks > INT32_MAX || p.plan.tiles > INT32_MAX) return kInvalidValue;
  if (p.plan.chunks > 1) {
    const int error = launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                                    selective_scan_bwd_kernel<L, true, kConstantC, true>, params, units);
    if (error != kSuccess) return error;
  }
  return launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                       selective_scan_bwd_kernel<L, kConstantB, kConstantC, false>, params, units);
}

}  // namespace

int launch_selective_scan_bwd(const SelectiveScanBackward& params, void* stream) {
  return with_layout(params.scan, [&](auto layout, auto constant_B, auto constant_C) {
    return launch<decltype(layout), constant_B.value, constant_C.value>(params, stream);
  });
}

}  // namespace mtlkit::cuda
