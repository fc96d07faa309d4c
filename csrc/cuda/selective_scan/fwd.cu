// Forward pass of selective_scan: see selective_scan.h for how the work is divided.
#include "cuda/launchers.h"
#include "cuda/selective_scan/selective_scan.cuh"

namespace mtlkit::cuda {
namespace {

template <typename L, bool kOrdered>
struct Shared {
  Step* x;                                  // (tokens, kPitch)
  float *B, *C;                             // (tokens, kPadded)
  float* sums;                              // (tokens, kSumPitch): y
  char *raw_u, *raw_delta, *raw_B, *raw_C;  // staged
  char* end;

  __host__ __device__ explicit Shared(char* memory) {
    Arena arena(memory);
    x = arena.take<Step>(L::kTokens * L::kPitch);
    B = arena.take<float>(L::kTokens * L::kPadded);
    C = arena.take<float>(L::kTokens * L::kPadded);
    sums = arena.take<float>(L::kTokens * L::kSumPitch);
    raw_u = arena.take<char>(kStagedBytes<L, L::kChannels, kOrdered>);
    raw_delta = arena.take<char>(kStagedBytes<L, L::kChannels, kOrdered>);
    raw_B = arena.take<char>(kStagedBytes<L, L::kPadded, kOrdered>);
    raw_C = arena.take<char>(kStagedBytes<L, L::kPadded, kOrdered>);
    end = arena.end();
  }
};

template <bool kConstantB, bool kConstantC, typename L, bool kOrdered>
__device__ void stage(const Shared<L, kOrdered>& shared, const SelectiveScan& p, const Units& units,
                      const Work<L>& work, const Tile<L>& tile) {
  const int states = static_cast<int>(p.shape.states);
  const Visits<kOrdered> visits(p, work, tile);
  stage_channels(shared.raw_u, p.u, work, tile, visits, units.u);
  stage_channels(shared.raw_delta, p.delta, work, tile, visits, units.delta);
  if constexpr (!kConstantB) stage_states(shared.raw_B, p.B, states, work, tile, visits, units.B);
  if constexpr (!kConstantC) stage_states(shared.raw_C, p.C, states, work, tile, visits, units.C);
  copy_async_commit();
}

template <bool kConstantB, bool kConstantC, typename L, bool kOrdered>
__device__ void unpack(const Shared<L, kOrdered>& shared, const SelectiveScan& p, const Work<L>& work,
                       const Tile<L>& tile) {
  const int states = static_cast<int>(p.shape.states);
  const Visits<kOrdered> visits(p, work, tile);
  if constexpr (!kConstantB) unpack_rows<kOrdered>(shared.B, shared.raw_B, p.B.dtype, states, tile, work.thread);
  if constexpr (!kConstantC) unpack_rows<kOrdered>(shared.C, shared.raw_C, p.C.dtype, states, tile, work.thread);
#pragma unroll 2
  for (int i = work.thread; i < L::kChannels * L::kTokens; i += L::kThreads) {
    const auto [channel, token] = place_of<L, kOrdered>(i);
    const int d = work.first_channel + channel;
    float dt = 0.0f, step = 0.0f, u = 0.0f, skip = 0.0f;
    if (channel < work.channels && token < tile.tokens) {
      const float delta = staged<L, L::kChannels, kOrdered>(shared.raw_delta, p.delta.dtype, channel, token);
      dt = time_step(p, delta, p.delta_bias ? p.delta_bias[d] : 0.0f).value;
      u = staged<L, L::kChannels, kOrdered>(shared.raw_u, p.u.dtype, channel, token);
      skip = p.D ? p.D[d] : 0.0f;
      step = signed_step(p, work, visits, token, dt);
    }
    shared.x[token * L::kPitch + channel] = {step, dt * u};
    shared.sums[token * L::kSumPitch + channel] = skip * u;
  }
}

template <typename L, bool kOrdered>
__device__ void store_outputs(const Shared<L, kOrdered>& shared, const SelectiveScanForward& params,
                              const Work<L>& work, const Tile<L>& tile) {
  const Visits<kOrdered> visits(params.scan, work, tile);
#pragma unroll 2
  for (int i = work.thread; i < stored<L, kOrdered>(work); i += L::kThreads) {
    const auto [channel, token] = place_of<L, kOrdered>(i);
    if (token >= tile.tokens || (kOrdered && channel >= work.channels)) continue;
    float y = shared.sums[token * L::kSumPitch + channel];
    const int64_t at = visits[token];
    if constexpr (!kOrdered) {
      const SelectiveScanShape& shape = params.scan.shape;
      const int d = work.first_channel + channel;
      if (params.ungated) params.ungated[(work.batch * shape.channels + d) * shape.tokens + at] = y;
      if (params.z) y *= silu(read(params.z, offset_of(params.z, work, channel, at)));
    }
    write(params.out, offset_of(params.out, work, channel, at), y);
  }
}

// kEndsOnly: computes each chunk's last state instead of the outputs. C is then not read and is passed as constant.
template <typename L, bool kConstantB, bool kConstantC, bool kOrdered, bool kEndsOnly>
__global__ void __launch_bounds__(L::kThreads, 512 / L::kThreads)
    selective_scan_fwd_kernel(const SelectiveScanForward params, const Units units) {
  const SelectiveScan& p = params.scan;
  const Work<L> work(p);
  const Shared<L, kOrdered> shared(dynamic_shared());
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
  const auto B = rows_of<kConstantB>(p, work, shared.B, p.B);
  const auto C = rows_of < kConstantC && !kEndsOnly > (p, work, shared.C, p.C);
  const States<L> A = load_A<L>(p, work);
  States<L> h = zero_states<L>();
  if constexpr (!kEndsOnly) h = chunk_start<L, kOrdered>(p, work, A, initial_state(p, work), false);
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
      advance_tile<L, kOrdered>(shared.x + channel, B, tile.padded, A, h, steps);
    } else {
      if (p.checkpoints && channel < work.channels) store_states<L>(checkpoint<L>(p, work, tile), lane, h);
      scan_tile<L, kOrdered>(shared.x + channel, B, C, shared.sums + channel, tile.padded, lane, A, h);
      block_sync();
      store_outputs(shared, params, work, tile);
    }
  }
  if constexpr (kEndsOnly) {
    store_chunk_end<L>(p, work, h, steps);
  } else if (work.chunk == p.plan.chunks - 1) {
    store_state(params.last_state, p, work, h);
  }
}

template <typename L, bool kConstantB, bool kConstantC, bool kOrdered>
int launch(const SelectiveScanForward& params, void* stream) {
  const SelectiveScan& p = params.scan;
  const int64_t blocks = blocks_of(p);
  const auto shared_bytes = static_cast<unsigned>(reinterpret_cast<uintptr_t>(Shared<L, kOrdered>(nullptr).end));
  const Units units = copy_units<L, kOrdered>(p, {});
  if (blocks > INT32_MAX || p.plan.tiles > INT32_MAX) return kInvalidValue;
  if (p.plan.chunks > 1) {
    const int error = launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                                    selective_scan_fwd_kernel<L, kConstantB, true, kOrdered, true>, params, units);
    if (error != kSuccess) return error;
  }
  return launch_kernel(blocks, L::kThreads, shared_bytes, stream,
                       selective_scan_fwd_kernel<L, kConstantB, kConstantC, kOrdered, false>, params, units);
}

}  // namespace

int launch_selective_scan_fwd(const SelectiveScanForward& params, void* stream) {
  return with_layout(params.scan, [&](auto layout, auto constant_B, auto constant_C, auto ordered) {
    return launch<decltype(layout), constant_B.value, constant_C.value, ordered.value>(params, stream);
  });
}

}  // namespace mtlkit::cuda
