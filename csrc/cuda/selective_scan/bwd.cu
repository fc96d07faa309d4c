// Backward pass of selective_scan: see selective_scan.h for how the work is divided, and ss2d/bwd.cu for how a tile is
// processed and where the sums go.
#include "cuda/launchers.h"
#include "cuda/selective_scan/selective_scan.cuh"

namespace mtlkit::cuda {
namespace {

template <typename L, bool kOrdered>
struct Shared {
  Token* tokens;  // (tokens, kPitch)
  float* slope;   // (tokens, kPitch): derivative of the time step by delta; then the gradient of delta
  float *B, *C;   // (tokens, kPadded)
  float* parts;   // ChannelSums
  float** rows;   // (tokens): address of the block's part of the gradients of the token's B and C; null beyond the end
  Work<L>* work;  // stored here while a tile is scanned, which needs every register
  float* starts;  // (groups - 1, kChannels, kPadded): states at the starts of groups, during a scan
  char *raw_u, *raw_delta, *raw_dout, *raw_B, *raw_C;  // in the same memory: staging for the next tile
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
    raw_u = arena.take<char>(kStagedBytes<L, L::kChannels, kOrdered>);
    raw_delta = arena.take<char>(kStagedBytes<L, L::kChannels, kOrdered>);
    raw_dout = arena.take<char>(kStagedBytes<L, L::kChannels, kOrdered>);
    raw_B = arena.take<char>(kStagedBytes<L, L::kPadded, kOrdered>);
    raw_C = arena.take<char>(kStagedBytes<L, L::kPadded, kOrdered>);
    end = states.end() > arena.end() ? states.end() : arena.end();
  }
};

template <bool kConstantB, bool kConstantC, typename L, bool kOrdered>
__device__ void stage(const Shared<L, kOrdered>& shared, const SelectiveScanBackward& params, const Units& units,
                      const Work<L>& work, const Tile<L>& tile) {
  const SelectiveScan& p = params.scan;
  const int states = static_cast<int>(p.shape.states);
  const Visits<kOrdered> visits(p, work, tile);
  stage_channels(shared.raw_u, p.u, work, tile, visits, units.u);
  stage_channels(shared.raw_delta, p.delta, work, tile, visits, units.delta);
  stage_channels(shared.raw_dout, params.dout, work, tile, visits, units.dout);
  if constexpr (!kConstantB) stage_states(shared.raw_B, p.B, states, work, tile, visits, units.B);
  if constexpr (!kConstantC) stage_states(shared.raw_C, p.C, states, work, tile, visits, units.C);
  copy_async_commit();
}

// Unpacks the staged tile into the current one. With a gate, also computes the gradients of the ungated output and of
// z.
template <bool kConstantB, bool kConstantC, bool kEndsOnly, typename L, bool kOrdered>
__device__ void unpack(const Shared<L, kOrdered>& shared, const SelectiveScanBackward& params, const Work<L>& work,
                       const Tile<L>& tile) {
  const SelectiveScan& p = params.scan;
  const int states = static_cast<int>(p.shape.states);
  const Visits<kOrdered> visits(p, work, tile);
  if constexpr (!kConstantB) unpack_rows<kOrdered>(shared.B, shared.raw_B, p.B.dtype, states, tile, work.thread);
  if constexpr (!kConstantC) unpack_rows<kOrdered>(shared.C, shared.raw_C, p.C.dtype, states, tile, work.thread);
#pragma unroll 1
  for (int i = work.thread; i < L::kChannels * L::kTokens; i += L::kThreads) {
    const auto [channel, token] = place_of<L, kOrdered>(i);
    const int d = work.first_channel + channel;
    Token values = {};
    float slope = 0.0f;
    if (channel < work.channels && token < tile.tokens) {
      const float delta = staged<L, L::kChannels, kOrdered>(shared.raw_delta, p.delta.dtype, channel, token);
      const Softplus step = time_step(p, delta, p.delta_bias ? p.delta_bias[d] : 0.0f);
      const float u = staged<L, L::kChannels, kOrdered>(shared.raw_u, p.u.dtype, channel, token);
      float dy = staged<L, L::kChannels, kOrdered>(shared.raw_dout, params.dout.dtype, channel, token);
      if (!kOrdered && params.z) {
        const int64_t at = tile.first + token;
        const float z = read(params.z, offset_of(params.z, work, channel, at));
        const float gate = reciprocal_approx(1.0f + exp2_approx(-kLog2E * z));
        if constexpr (!kEndsOnly) {
          const float y = params.ungated[(work.batch * p.shape.channels + d) * p.shape.tokens + at];
          const float dz = dy * y * gate * (1.0f + z * (1.0f - gate));
          write(params.dz, offset_of(params.dz, work, channel, at), dz);
        }
        dy *= z * gate;
      }
      values = {signed_step(p, work, visits, token, step.value), step.value * u, dy, u};
      slope = step.slope;
    }
    shared.tokens[token * L::kPitch + channel] = values;
    shared.slope[token * L::kPitch + channel] = slope;
  }
  if constexpr (kEndsOnly || (kConstantB && kConstantC)) return;
  const int64_t image = (work.group_block * p.shape.batch + work.batch) * p.shape.groups + work.group;
  float* rows = params.drows + image * p.order.tokens * 2 * states;
  for (int token = work.thread; token < tile.padded; token += L::kThreads) {
    shared.rows[token] = token < tile.tokens ? rows + visits[token] * 2 * states : nullptr;
  }
}

// Gradients that a thread sums over all tokens.
template <typename L>
struct Collected {
  States<L> A, B, C;  // B and C only if constant
  float skip, bias;
};

// Scans one tile: writes dB and dC to global memory; leaves the gradients of u and delta in `tokens` and `slope`.
template <bool kConstantB, bool kConstantC, typename L, bool kOrdered, typename RowsB, typename RowsC>
__device__ void descend(const Shared<L, kOrdered>& shared, const SelectiveScanBackward& params, const Work<L>& work,
                        const Tile<L>& tile, const RowsB& B, const RowsC& C, const States<L>& A, States<L>& carry,
                        Collected<L>& collected) {
  constexpr float kLn2 = 0.693147180559945309417f;
  constexpr int kShared = L::kLanes < kGroupTokens ? L::kLanes : kGroupTokens;
  const SelectiveScan& p = params.scan;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes, state = lane * L::kStates;
  const int states = static_cast<int>(p.shape.states), last = tile.padded / kGroupTokens - 1;
  const auto skip_of = [&] { return p.D && channel < work.channels ? p.D[work.first_channel + channel] : 0.0f; };
  const float kept_skip = kOrdered ? 0.0f : skip_of();
  Token* tokens = shared.tokens + channel;
  float* starts = shared.starts + channel * L::kPadded;
  // Writes the sums of the parts to the rows of the group's tokens, from `offset` on.
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
    advance_group<L, kOrdered>(tokens + group * kGroupTokens * L::kPitch, B.from(group * kGroupTokens), A, h);
  }

#pragma unroll 1
  for (int group = last; group >= 0; --group) {
    Token* at = tokens + group * kGroupTokens * L::kPitch;
    const RowsB b = B.from(group * kGroupTokens);
    const RowsC c = C.from(group * kGroupTokens);
    if (group < last) h = load_states<L>(starts + group * L::kChannels * L::kPadded, lane);

    Group<L> kept;
    rebuild_group<L, kOrdered>(at, b, A, h, kept, [&](int j, int i, const Pack<float, L::kQuad>& part) {
      if constexpr (kConstantC) {
#pragma unroll
        for (int q = 0; q < L::kQuad; ++q) collected.C.values[i + q] += part.values[q];
      } else {
        store(ChannelSums<L>::place(shared.parts, j, channel, state + i), part);
      }
    });
    if constexpr (!kConstantC) block_sync();
    float ddtu[kGroupTokens], ddt[kGroupTokens];
    descend_group<L, kOrdered>(at, b, c, A, kept, carry, collected.A, ddtu, ddt);
    sum_over_lanes<L::kLanes>(ddtu, lane);
    sum_over_lanes<L::kLanes>(ddt, lane);
    if (lane < kShared) {
      const float skip = kOrdered ? skip_of() : kept_skip;  // with an order, no registers are left to keep it
#pragma unroll
      for (int i = 0; i < kGroupTokens / kShared; ++i) {
        const int j = lane + i * kShared;
        const Token token = at[j * L::kPitch];
        float& slope = shared.slope[(group * kGroupTokens + j) * L::kPitch + channel];
        slope *= kLn2 * ddt[i] + ddtu[i] * token.u;
        collected.bias += slope;
        collected.skip += token.dy * token.u;
        at[j * L::kPitch].u = ddtu[i] * time_of<kOrdered>(token.dt) + skip * token.dy;
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

template <typename L, bool kOrdered>
__device__ void store_gradients(const Shared<L, kOrdered>& shared, const SelectiveScanBackward& params,
                                const Work<L>& work, const Tile<L>& tile) {
  const Visits<kOrdered> visits(params.scan, work, tile);
#pragma unroll 2
  for (int i = work.thread; i < stored<L, kOrdered>(work); i += L::kThreads) {
    const auto [channel, token] = place_of<L, kOrdered>(i);
    if (token >= tile.tokens || (kOrdered && channel >= work.channels)) continue;
    const int64_t at = visits[token];
    write(params.du, offset_of(params.du, work, channel, at), shared.tokens[token * L::kPitch + channel].u);
    write(params.ddelta, offset_of(params.ddelta, work, channel, at), shared.slope[token * L::kPitch + channel]);
  }
}

// Writes the block's part of the parameter gradients.
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
  const int channel = work.first_channel + work.thread / L::kLanes, first = work.thread % L::kLanes * L::kStates;
  const Tensor<3>& from = params.dlast_state;
  States<L> result = zero_states<L>();
  if (!from) return result;
  for_states(params.scan, work, [&](int i) {
    const int64_t at = work.batch * from.stride[0] + channel * from.stride[1] + (first + i) * from.stride[2];
    result.values[i] = element(static_cast<const char*>(from.data), from.dtype, at);
  });
  return result;
}

// kEndsOnly: computes each chunk's final carry instead of the gradients. B is then not read and is passed as constant.
template <typename L, bool kConstantB, bool kConstantC, bool kOrdered, bool kEndsOnly>
__global__ void __launch_bounds__(L::kThreads, (L::kLanes > 4 || kConstantB || kConstantC ? 256 : 512) / L::kThreads)
    selective_scan_bwd_kernel(const SelectiveScanBackward params, const Units units) {
  const SelectiveScan& p = params.scan;
  Work<L> work(p);
  const Shared<L, kOrdered> shared(dynamic_shared());
  const int channel = work.thread / L::kLanes;
  const auto B = rows_of < kConstantB && !kEndsOnly > (p, work, shared.B, p.B);
  const auto C = rows_of<kConstantC>(p, work, shared.C, p.C);
  const States<L> A = load_A<L>(p, work);
  States<L> carry = zero_states<L>();
  if constexpr (!kEndsOnly) carry = chunk_start<L, kOrdered>(p, work, A, last_gradient<L>(params, work), true);
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
      descend_tile<L, kOrdered>(shared.tokens + channel, C, tile.padded, A, carry, steps);
    } else {
      descend<kConstantB, kConstantC>(shared, params, work, tile, B, C, A, carry, collected);
      work = *shared.work;
      work.thread = static_cast<int>(threadIdx.x);
      if (iteration > 0) stage<kConstantB, kConstantC>(shared, params, units, work, Tile<L>(p, tile.index - 1));
      store_gradients(shared, params, work, tile);
    }
  }
  if constexpr (kEndsOnly) {
    store_chunk_end<L>(p, work, carry, steps);
  } else {
    store_parameters<kConstantB, kConstantC>(params, work, collected);
    if (params.dinitial_state && work.chunk == 0) store_state(params.dinitial_state, p, work, carry);
  }
}

template <typename L, bool kConstantB, bool kConstantC, bool kOrdered>
int launch(const SelectiveScanBackward& params, void* stream) {
  const SelectiveScan& p = params.scan;
  const int64_t blocks = blocks_of(p);
  const auto shared_bytes = static_cast<unsigned>(reinterpret_cast<uintptr_t>(Shared<L, kOrdered>(nullptr).end));
  const Units units = copy_units<L, kOrdered>(p, params.dout);
  if (blocks > INT32_MAX || p.plan.tiles > INT32_MAX) return kInvalidValue;
  if (p.plan.chunks > 1) {
    const int error = launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                                    selective_scan_bwd_kernel<L, true, kConstantC, kOrdered, true>, params, units);
    if (error != kSuccess) return error;
  }
  return launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                       selective_scan_bwd_kernel<L, kConstantB, kConstantC, kOrdered, false>, params, units);
}

}  // namespace

int launch_selective_scan_bwd(const SelectiveScanBackward& params, void* stream) {
  return with_layout(params.scan, [&](auto layout, auto constant_B, auto constant_C, auto ordered) {
    return launch<decltype(layout), constant_B.value, constant_C.value, ordered.value>(params, stream);
  });
}

}  // namespace mtlkit::cuda
