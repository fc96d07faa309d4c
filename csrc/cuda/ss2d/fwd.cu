// Forward pass of the four-direction scan: see ss2d.h for how the work is divided.
#include "cuda/launchers.h"
#include "cuda/ss2d/ss2d.cuh"

namespace mtlkit::cuda {
namespace {

// The shared memory of one half of a block. The asynchronous copies of the next tile write to the raw parts while the
// other parts hold the current tile. Parts whose size depends on R come last, so that the others have fixed offsets.
template <typename L>
struct Shared {
  Step* x;       // (tokens, kPitch)
  float *B, *C;  // (tokens, kPadded)
  float* sums;   // (tokens, kSumPitch): y
  float* bias;   // (kChannels)
  float* skip;   // (kChannels)
  char* raw_u;   // (tokens, kChannels)
  char* raw_rows;
  float* weight;  // (R, kChannels)
  char* end;

  __host__ __device__ Shared(char* memory, int row_bytes, int64_t rank) {
    Arena arena(memory);
    x = arena.take<Step>(L::kTokens * L::kPitch);
    B = arena.take<float>(L::kTokens * L::kPadded);
    C = arena.take<float>(L::kTokens * L::kPadded);
    sums = arena.take<float>(L::kTokens * L::kSumPitch);
    bias = arena.take<float>(L::kChannels);
    skip = arena.take<float>(L::kChannels);
    raw_u = arena.take<char>(L::kTokens * L::kChannels * 4);
    raw_rows = arena.take<char>(L::kTokens * row_bytes);
    weight = arena.take<float>(rank * L::kChannels);
    end = arena.end();
  }
};

template <typename L>
__device__ void stage(const Shared<L>& shared, bool vectors, const SS2D& p, const SS2DGeometry& geometry,
                      const Work<L>& work, const Tile<L>& tile) {
  if (p.x_dbl.dtype == DType::kFloat32) {
    stage_rows<L, 16>(shared.raw_rows, p, geometry, work, tile);
  } else {
    stage_rows<L, 8>(shared.raw_rows, p, geometry, work, tile);
  }
  stage_channels<L>(shared.raw_u, p.u, vectors, p, geometry, work, tile);
  copy_async_commit();
}

// Unpacks the raw parts into the current tile. T: the type of x_dbl.
template <typename L, typename T>
__device__ void unpack(const Shared<L>& shared, const SS2D& p, const SS2DGeometry& geometry, const Work<L>& work,
                       const Tile<L>& tile) {
  const int skew = row_skew(p, work);
  unpack_states<L, T>(shared.B, shared.C, shared.raw_rows, p, geometry, work, tile, skew);
  project_steps<L, T>(shared.raw_rows, shared.weight, shared.bias, p, geometry, work, tile, skew,
                      [&](int token, int channel, int place, bool real, float dt, float) {
                        const float u = real ? element(shared.raw_u, p.u.dtype, place * L::kChannels + channel) : 0.0f;
                        shared.x[token * L::kPitch + channel] = {dt, dt * u};
                        shared.sums[token * L::kSumPitch + channel] = shared.skip[channel] * u;
                      });
}

template <typename L>
__device__ void unpack(const Shared<L>& shared, const SS2D& p, const SS2DGeometry& geometry, const Work<L>& work,
                       const Tile<L>& tile) {
  switch (p.x_dbl.dtype) {
    case DType::kBFloat16:
      return unpack<L, bf16>(shared, p, geometry, work, tile);
    case DType::kFloat16:
      return unpack<L, f16>(shared, p, geometry, work, tile);
    default:
      return unpack<L, float>(shared, p, geometry, work, tile);
  }
}

// kEndsOnly: computes each chunk's last state instead of the outputs.
template <typename L, bool kEndsOnly>
__global__ void __launch_bounds__(2 * L::kThreads, 512 / (2 * L::kThreads))
    ss2d_fwd_kernel(const SS2DForward params, const SS2DGeometry geometry, const bool vectors) {
  const SS2D& p = params.scan;
  const Work<L> work(p);
  const bool upwards = work.group == 0;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;

  const Shared<L> first_half(dynamic_shared(), geometry.row_bytes, p.shape.rank);
  const Shared<L> shared(upwards ? dynamic_shared() : first_half.end, geometry.row_bytes, p.shape.rank);
  load_weights<L>(shared.weight, shared.bias, shared.skip, p, work);
  const SharedRows<L> B{shared.B + lane * L::kStates}, C{shared.C + lane * L::kStates};
  const States<L> A = load_A<L>(p, work);
  States<L> h = kEndsOnly ? zero_states<L>() : chunk_start<L>(p, work, A, false);
  float steps = 0.0f;

  const auto tile_at = [&](int iteration) {
    return Tile<L>(p.shape, work.first_tile + (upwards ? iteration : work.tiles - 1 - iteration), upwards);
  };
  stage(shared, vectors, p, geometry, work, tile_at(0));
  for (int iteration = 0; iteration < work.tiles; ++iteration) {
    const Tile<L> tile = tile_at(iteration);
    copy_async_wait();
    block_sync();
    unpack(shared, p, geometry, work, tile);
    block_sync();
    if (iteration + 1 < work.tiles) stage(shared, vectors, p, geometry, work, tile_at(iteration + 1));

    if constexpr (kEndsOnly) {
      advance_tile<L>(shared.x + channel, B, tile.padded, A, h, steps);
    } else {
      if (p.checkpoints) {
        if (float* states = checkpoint(p, work, tile)) store_states<L>(states, lane, h);
      }
      scan_tile<L>(shared.x + channel, B, C, shared.sums + channel, tile.padded, lane, A, h);
      block_sync();
      merge_tile<L>(params.maps, p, geometry, work, tile, iteration, [&](int place, int c) {
        const int token = upwards ? place : tile.padded - 1 - place;
        return shared.sums[token * L::kSumPitch + c];
      });
    }
  }
  if constexpr (kEndsOnly) store_chunk_end<L>(p, work, h, steps, false);
}

template <typename L>
int launch(const SS2DForward& params, void* stream) {
  const SS2D& p = params.scan;
  const SS2DGeometry geometry(p.shape, p.x_dbl.dtype);
  const unsigned shared_bytes = 2 * shared_size<Shared<L>>(geometry, p.shape.rank);
  const bool vectors = copies_vectors<L>(p.u, p.shape.channels);
  const int64_t blocks = blocks_of(p, p.shape.batch);
  if (blocks > INT32_MAX || p.shape.tokens() > INT32_MAX) return kInvalidValue;
  if (p.plan.chunks > 1) {
    const int error = launch_kernel(blocks, 2 * L::kThreads, shared_bytes, stream, ss2d_fwd_kernel<L, true>, params,
                                    geometry, vectors);
    if (error != kSuccess) return error;
  }
  return launch_kernel(blocks, 2 * L::kThreads, shared_bytes, stream, ss2d_fwd_kernel<L, false>, params, geometry,
                       vectors);
}

// Calls `use` with the layout of an index; returns -1 if there is none.
template <typename Use>
int64_t with_layout(int64_t index, Use use) {
  switch (index) {
#define MTLKIT_CASE(index, ...) \
  case index:                   \
    return use(Layout<__VA_ARGS__>{});
    MTLKIT_SS2D_FORWARD_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
    default:
      return -1;
  }
}

}  // namespace

int launch_ss2d_fwd(const SS2DForward& params, void* stream) {
  return with_layout(params.scan.plan.layout, [&](auto layout) { return launch<decltype(layout)>(params, stream); });
}

int64_t ss2d_fwd_shared(int64_t layout, const SS2DShape& shape) {
  const SS2DGeometry geometry(shape, DType::kFloat32);
  return with_layout(
      layout, [&](auto layout) { return 2 * int64_t{shared_size<Shared<decltype(layout)>>(geometry, shape.rank)}; });
}

}  // namespace mtlkit::cuda
