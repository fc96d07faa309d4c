// Forward pass of selective_scan: see selective_scan.h for how the work is divided.
#include "cuda/launchers.h"
#include "cuda/selective_scan/selective_scan.cuh"

namespace mtlkit::cuda {
namespace {

template <typename L>
struct Shared {
  Step* x;                                  // (tokens, kPitch)
  float *B, *C;                             // (tokens, kPadded)
  float* sums;                              // (tokens, kSumPitch): y
  char *raw_u, *raw_delta, *raw_B, *raw_C;  // staged lines
  char* end;

  __host__ __device__ explicit Shared(char* memory) {
    Arena arena(memory);
    x = arena.take<Step>(L::kTokens * L::kPitch);
    B = arena.take<float>(L::kTokens * L::kPadded);
    C = arena.take<float>(L::kTokens * L::kPadded);
    sums = arena.take<float>(L::kTokens * L::kSumPitch);
    raw_u = arena.take<char>(L::kChannels * kLinePitch<L>);
    raw_delta = arena.take<char>(L::kChannels * kLinePitch<L>);
    raw_B = arena.take<char>(L::kPadded * kLinePitch<L>);
    raw_C = arena.take<char>(L::kPadded * kLinePitch<L>);
    end = arena.end();
  }
};

template <bool kConstantB, bool kConstantC, typename L>
__device__ void stage(const Shared<L>& shared, const SelectiveScan& p, const Units& units, const Work<L>& work,
                      const Tile<L>& tile) {
  const int states = static_cast<int>(p.shape.states);
  stage_channels<L>(shared.raw_u, p.u, work, tile, units.u);
  stage_channels<L>(shared.raw_delta, p.delta, work, tile, units.delta);
  if constexpr (!kConstantB) stage_states<L>(shared.raw_B, p.B, states, work, tile, units.B);
  if constexpr (!kConstantC) stage_states<L>(shared.raw_C, p.C, states, work, tile, units.C);
  copy_async_commit();
}

template <bool kConstantB, bool kConstantC, typename L>
__device__ void unpack(const Shared<L>& shared, const SelectiveScan& p, const Work<L>& work, const Tile<L>& tile) {
  const int states = static_cast<int>(p.shape.states);
  if constexpr (!kConstantB) unpack_rows(shared.B, shared.raw_B, p.B.dtype, states, tile, work.thread);
  if constexpr (!kConstantC) unpack_rows(shared.C, shared.raw_C, p.C.dtype, states, tile, work.thread);
#pragma unroll 2
  for (int i = work.thread; i < L::kChannels * L::kTokens; i += L::kThreads) {
    const int channel = i / L::kTokens, token = i % L::kTokens;
    const int d = work.first_channel + channel;
    float dt = 0.0f, u = 0.0f, skip = 0.0f;
    if (channel < work.channels && token < tile.tokens) {
      const float delta = element(shared.raw_delta + channel * kLinePitch<L>, p.delta.dtype, token);
      dt = time_step(p, delta, p.delta_bias ? p.delta_bias[d] : 0.0f).value;
      u = element(shared.raw_u + channel * kLinePitch<L>, p.u.dtype, token);
      skip = p.D ? p.D[d] : 0.0f;
    }
    shared.x[token * L::kPitch + channel] = {dt, dt * u};
    shared.sums[token * L::kSumPitch + channel] = skip * u;
  }
}

template <typename L>
__device__ void store_outputs(const Shared<L>& shared, const SelectiveScanForward& params, const Work<L>& work,
                              const Tile<L>& tile) {
#pragma unroll 2
  for (int i = work.thread; i < work.channels * L::kTokens; i += L::kThreads) {
    const int channel = i / L::kTokens, token = i % L::kTokens, d = work.first_channel + channel;
    if (token >= tile.tokens) continue;
    float y = shared.sums[token * L::kSumPitch + channel];
    const SelectiveScanShape& shape = params.scan.shape;
    if (params.ungated) params.ungated[(work.batch * shape.channels + d) * shape.tokens + tile.first + token] = y;
    if (params.z) y *= silu(read(params.z, offset_of(params.z, work.batch, d, tile.first + token)));
    write(params.out, offset_of(params.out, work.batch, d, tile.first + token), y);
  }
}

// kEndsOnly: finds what each chunk leaves instead of the outputs. C is not read then, as if it were constant.
template <typename L, bool kConstantB, bool kConstantC, bool kEndsOnly>
__global__ void __launch_bounds__(L::kThreads, 512 / L::kThreads)
    selective_scan_fwd_kernel(const SelectiveScanForward params, const Units units) {
  const SelectiveScan& p = params.scan;
  const Work<L> work(p);
  const Shared<L> shared(dynamic_shared());
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
  const auto B = rows_of<kConstantB>(p, work, shared.B, p.B);
  const auto C = rows_of < kConstantC && !kEndsOnly > (p, work, shared.C, p.C);
  const States<L> A = load_A<L>(p, work);
  States<L> h = kEndsOnly ? zero_states<L>() : chunk_start<L>(p, work, A, zero_states<L>(), false);
  float steps = 0.0f;

  stage<kConstantB, kConstantC>(shared, p, units, work, Tile<L>(p, work.first_tile));
  for (int iteration = 0; iteration < work.tiles; ++iteration) {
    const Tile<L> tile(p, work.first_tile + iteration);
    copy_async_wait();
    block_sync();
    unpack<kConstantB, kConstantC>(shared, p, work, tile);
    block_sync();
    if (iteration + 1 < work.tiles) {
      stage<kConstantB, kConstantC>(shared, p, units, work, Tile<L>(p, tile.index + 1));
    }

    if constexpr (kEndsOnly) {
      advance_tile<L>(shared.x + channel, B, tile.padded, A, h, steps);
    } else {
      if (p.checkpoints && channel < work.channels) store_states<L>(checkpoint<L>(p, work, tile), lane, h);
      scan_tile<L>(shared.x + channel, B, C, shared.sums + channel, tile.padded, lane, A, h);
      block_sync();
      store_outputs<L>(shared, params, work, tile);
    }
  }
  if constexpr (kEndsOnly) {
    store_chunk_end<L>(p, work, h, steps);
  } else if (work.chunk == p.plan.chunks - 1 && channel < work.channels) {
    float* last = params.last_state + (work.batch * p.shape.channels + work.first_channel + channel) * p.shape.states;
    for (int i = 0; i < L::kStates; ++i) {
      if (lane * L::kStates + i < p.shape.states) last[lane * L::kStates + i] = h.values[i];
    }
  }
}

template <typename L, bool kConstantB, bool kConstantC>
int launch(const SelectiveScanForward& params, void* stream) {
  const SelectiveScan& p = params.scan;
  const int64_t blocks = blocks_of(p), tokens = p.shape.tokens;
  const auto shared_bytes = static_cast<unsigned>(reinterpret_cast<uintptr_t>(Shared<L>(nullptr).end));
  const Units units{copy_unit(p.u, tokens), copy_unit(p.delta, tokens), copy_unit(p.B, tokens), copy_unit(p.C, tokens),
                    0};
  if (blocks > INT32_MAX || p.plan.tiles > INT32_MAX) return kInvalidValue;
  if (p.plan.chunks > 1) {
    const int error = launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                                    selective_scan_fwd_kernel<L, kConstantB, true, true>, params, units);
    if (error != kSuccess) return error;
  }
  return launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                       selective_scan_fwd_kernel<L, kConstantB, kConstantC, false>, params, units);
}

}  // namespace

int launch_selective_scan_fwd(const SelectiveScanForward& params, void* stream) {
  return with_layout(params.scan, [&](auto layout, auto constant_B, auto constant_C) {
    return launch<decltype(layout), constant_B.value, constant_C.value>(params, stream);
  });
}

}  // namespace mtlkit::cuda
