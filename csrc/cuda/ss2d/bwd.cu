// Backward pass of the four-direction scan: see ss2d.h for how the work is divided.
//
// Each half of a block visits its tiles against the direction of its scan and recomputes the states from the tile's
// checkpoint. Sums over channels (dB, dC, the gradient of the time step's row) are written as one part per block of
// channels; a small kernel adds them after each launch. Sums over tokens (dA, dD, the time step's weights) are written
// as one part per image of a launch and chunk; another kernel adds them at the end. Both use a fixed order.
#include "cuda/launchers.h"
#include "cuda/ss2d/bwd.cuh"

namespace mtlkit::cuda {
namespace {

// Whether tiles are copied 16 bytes at a time.
struct Vectors {
  bool u, dy;
};

// The work of one half of a block. It is stored in shared memory while a tile is scanned, which needs every register.
template <typename L>
struct Task {
  Work<L> work;
  Vectors vectors;
};

// The shared memory of one half of a block. The offsets of most parts do not depend on R.
template <typename L>
struct Shared {
  Token* tokens;  // (tokens, kPitch)
  float* slope;   // (tokens, kPitch): of softplus; then the gradient of its argument
  float *B, *C;   // (tokens, kPadded)
  float* parts;   // ChannelSums
  float* bias;    // (kChannels)
  float* skip;    // (kChannels)
  float** rows;   // (tokens): address of the block's part of the gradient of the token's B; null beyond the end
  Task<L>* task;
  float* dweight;  // (padded R + 1, kChannels), the bias after the weights
  float* weight;   // (padded R + 1, kChannels), zero beyond R
  float* steps;    // (tokens, padded R + 1): the time step's row, then a one for the bias
  float* starts;   // (groups - 1, kChannels, kPadded): states at the starts of groups, during a scan
  char* raw_u;     // in the same memory, like the next two: staging for the next tile
  char* raw_dy;
  char* raw_rows;
  char* end;

  __host__ __device__ Shared(char* memory, int row_bytes, int64_t rank) {
    const int64_t padded = padded_rank(rank);
    Arena arena(memory);
    tokens = arena.take<Token>(L::kTokens * L::kPitch);
    slope = arena.take<float>(L::kTokens * L::kPitch);
    B = arena.take<float>(L::kTokens * L::kPadded);
    C = arena.take<float>(L::kTokens * L::kPadded);
    parts = arena.take<float>(ChannelSums<L>::kFloats);
    bias = arena.take<float>(L::kChannels);
    skip = arena.take<float>(L::kChannels);
    rows = arena.take<float*>(L::kTokens);
    task = arena.take<Task<L>>(1);
    dweight = arena.take<float>(padded * L::kChannels);
    weight = arena.take<float>(padded * L::kChannels);
    steps = arena.take<float>(L::kTokens * padded);
    Arena states = arena;
    starts = states.take<float>((L::kTokens / kGroupTokens - 1) * L::kChannels * L::kPadded);
    raw_u = arena.take<char>(L::kTokens * L::kChannels * 4);
    raw_dy = arena.take<char>(L::kTokens * L::kChannels * 4);
    raw_rows = arena.take<char>(L::kTokens * row_bytes);
    if (states.end() > arena.end()) arena = states;
    end = arena.end();
  }

  // R + 1 in whole vectors of four.
  __host__ __device__ static int padded_rank(int64_t rank) { return static_cast<int>(rank / 4 * 4 + 4); }
};

template <typename L>
__device__ void stage(const Shared<L>& shared, const Vectors& vectors, const SS2DBackward& params,
                      const SS2DGeometry& geometry, const Work<L>& work, const Tile<L>& tile) {
  const SS2D& p = params.scan;
  if (p.x_dbl.dtype == DType::kFloat32) {
    stage_rows<L, 16>(shared.raw_rows, p, geometry, work, tile);
  } else {
    stage_rows<L, 8>(shared.raw_rows, p, geometry, work, tile);
  }
  stage_channels<L>(shared.raw_u, p.u, vectors.u, p, geometry, work, tile);
  stage_channels<L>(shared.raw_dy, params.dy, vectors.dy, p, geometry, work, tile);
  copy_async_commit();
}

// Unpacks the raw parts into the current tile. T: the type of x_dbl.
template <typename L, typename T>
__device__ void unpack(const Shared<L>& shared, const SS2DBackward& params, const SS2DGeometry& geometry,
                       const Portion& portion, const Work<L>& work, const Tile<L>& tile) {
  const SS2D& p = params.scan;
  const int skew = row_skew(p, work);
  unpack_states<L, T>(shared.B, shared.C, shared.raw_rows, p, geometry, work, tile, skew);
  project_steps<L, T>(shared.raw_rows, shared.weight, shared.bias, p, geometry, work, tile, skew,
                      [&](int token, int channel, int place, bool real, float dt, float slope) {
                        const int at = place * L::kChannels + channel;
                        const float u = real ? element(shared.raw_u, p.u.dtype, at) : 0.0f;
                        const float dy = real ? element(shared.raw_dy, params.dy.dtype, at) : 0.0f;
                        shared.tokens[token * L::kPitch + channel] = {dt, dt * u, dy, u};
                        shared.slope[token * L::kPitch + channel] = real ? slope : 0.0f;
                      });
  const int rank = static_cast<int>(p.shape.rank), padded = Shared<L>::padded_rank(rank);
#pragma unroll 1
  for (int i = work.thread; i < tile.padded * padded; i += L::kThreads) {
    const int token = i / padded, r = i % padded, place = tile.place(token);
    const T* row = reinterpret_cast<const T*>(shared.raw_rows + place * geometry.row_bytes) + skew;
    shared.steps[i] = place >= tile.tokens ? 0.0f : r < rank ? to_float(row[r]) : r == rank ? 1.0f : 0.0f;
  }
  const int part = work.channel_block - static_cast<int>(first_stored_part(p)),
            image = work.batch - portion.first_image;
  float* rows = static_cast<float*>(params.dx_dbl) +
                (work.batch * p.shape.tokens() * kDirections + work.direction) * p.shape.row() + rank;
  if (part >= 0) {
    const Window window(p, portion, L::kTokens, work.chunk, work.group == 0);
    rows = params.parts + rows_before(p, part, image, work.scan, work.chunk, L::kTokens) +
           (int64_t{tile.index} * L::kTokens - window.first) * p.shape.row() + rank;
  }
#pragma unroll 1
  for (int token = work.thread; token < tile.padded; token += L::kThreads) {
    const int place = tile.place(token);
    const int64_t row = part >= 0 ? place : index_at(geometry, work.pair, tile, place) * kDirections;
    shared.rows[token] = place < tile.tokens ? rows + row * p.shape.row() : nullptr;
  }
}

template <typename L>
__device__ void unpack(const Shared<L>& shared, const SS2DBackward& params, const SS2DGeometry& geometry,
                       const Portion& portion, const Work<L>& work, const Tile<L>& tile) {
  switch (params.scan.x_dbl.dtype) {
    case DType::kBFloat16:
      return unpack<L, bf16>(shared, params, geometry, portion, work, tile);
    case DType::kFloat16:
      return unpack<L, f16>(shared, params, geometry, portion, work, tile);
    default:
      return unpack<L, float>(shared, params, geometry, portion, work, tile);
  }
}

// Scans one tile: writes dB and dC to global memory; leaves the gradients of u and of softplus' argument in `tokens`
// and `slope`; adds the thread's part of the gradient of D to dskip.
template <typename L>
__device__ void descend(const Shared<L>& shared, const SS2DBackward& params, const Work<L>& work, const Tile<L>& tile,
                        const States<L>& A, States<L>& carry, States<L>& dA, float& dskip) {
  constexpr float kLn2 = 0.693147180559945309417f;
  constexpr int kShared = L::kLanes < kGroupTokens ? L::kLanes : kGroupTokens;
  const SS2D& p = params.scan;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes, state = lane * L::kStates;
  const int states = static_cast<int>(p.shape.states);
  const int last = tile.padded / kGroupTokens - 1;
  const float skip = shared.skip[channel];
  Token* tokens = shared.tokens + channel;
  const SharedRows<L> B{shared.B + state}, C{shared.C + state};
  float* starts = shared.starts + channel * L::kPadded;
  States<L> h = zero_states<L>();
  if (const float* before = checkpoint(p, work, tile)) h = load_states<L>(before, lane);
#pragma unroll 1
  for (int group = 0; group < last; ++group) {
    store_states<L>(starts + group * L::kChannels * L::kPadded, lane, h);
    advance_group<L>(tokens + group * kGroupTokens * L::kPitch, B.from(group * kGroupTokens), A, h);
  }

#pragma unroll 1
  for (int group = last; group >= 0; --group) {
    Token* at = tokens + group * kGroupTokens * L::kPitch;
    const SharedRows<L> b = B.from(group * kGroupTokens), c = C.from(group * kGroupTokens);
    if (group < last) h = load_states<L>(starts + group * L::kChannels * L::kPadded, lane);

    Group<L> kept;
    rebuild_group<L>(at, b, A, h, kept, [&](int j, int i, const Pack<float, L::kQuad>& part) {
      store(ChannelSums<L>::place(shared.parts, j, channel, state + i), part);
    });
    block_sync();
    float ddtu[kGroupTokens], ddt[kGroupTokens];
    descend_group<L>(at, b, c, A, kept, carry, dA, ddtu, ddt);
    sum_over_lanes<L::kLanes>(ddtu, lane);
    sum_over_lanes<L::kLanes>(ddt, lane);
    if (lane < kShared) {
#pragma unroll
      for (int i = 0; i < kGroupTokens / kShared; ++i) {
        const int j = lane + i * kShared;
        const Token token = at[j * L::kPitch];
        float& slope = shared.slope[(group * kGroupTokens + j) * L::kPitch + channel];
        slope *= kLn2 * ddt[i] + ddtu[i] * token.u;
        dskip += token.dy * token.u;
        at[j * L::kPitch].u = ddtu[i] * token.dt + skip * token.dy;
      }
    }
    float* rows[ChannelSums<L>::kRounds];
    ChannelSums<L>::sum(shared.parts, work.thread, [&](int round, int j, int n, float sum) {
      rows[round] = n < states ? shared.rows[group * kGroupTokens + j] : nullptr;
      if (rows[round]) rows[round][states + n] = sum;
    });
    block_sync();
#pragma unroll
    for (int j = 0; j < kGroupTokens; ++j) {
#pragma unroll
      for (int i = 0; i < L::kStates; i += L::kQuad) {
        Pack<float, L::kQuad> part;
#pragma unroll
        for (int q = 0; q < L::kQuad; ++q) part.values[q] = kept.product[j][i + q];
        store(ChannelSums<L>::place(shared.parts, j, channel, state + i), part);
      }
    }
    block_sync();
    ChannelSums<L>::sum(shared.parts, work.thread, [&](int round, int, int n, float sum) {
      if (rows[round]) rows[round][n] = sum;
    });
    block_sync();
  }
}

// From the gradient of softplus' argument, writes the gradient of the time step's rows to global memory and adds to the
// weights'.
template <typename L>
__device__ void project_back(const Shared<L>& shared, const SS2DBackward& params, const Work<L>& work,
                             const Tile<L>& tile) {
  constexpr int kAtOnce = 4;
  const int rank = static_cast<int>(params.scan.shape.rank), padded = Shared<L>::padded_rank(rank);

  const int token = work.thread % L::kTokens;
  if (token < tile.padded && shared.rows[token]) {
    float* row = shared.rows[token] - rank;
    for (int first = work.thread / L::kTokens * kAtOnce; first < rank; first += L::kThreads / L::kTokens * kAtOnce) {
      float sum[kAtOnce] = {};
#pragma unroll 2
      for (int c = 0; c < L::kChannels; ++c) {
        const float g = shared.slope[token * L::kPitch + c];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) sum[j] += g * shared.weight[(first + j) * L::kChannels + c];
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j < rank) row[first + j] = sum[j];
      }
    }
  }

  const int channel = work.thread % L::kChannels;
  for (int first = work.thread / L::kChannels * kAtOnce; first < padded; first += L::kLanes * kAtOnce) {
    float sum[kAtOnce] = {};
#pragma unroll 2
    for (int t = 0; t < tile.padded; ++t) {
      const float g = shared.slope[t * L::kPitch + channel];
      const auto steps = load<kAtOnce>(shared.steps + t * padded + first);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) sum[j] += g * steps.values[j];
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) shared.dweight[(first + j) * L::kChannels + channel] += sum[j];
  }
}

// Writes the block's part of the parameter gradients.
template <typename L>
__device__ void store_parameters(const Shared<L>& shared, const SS2DBackward& params, const Portion& portion,
                                 const Work<L>& work, const States<L>& A, const States<L>& dA, float dskip) {
  constexpr float kLn2 = 0.693147180559945309417f;
  const SS2D& p = params.scan;
  const int states = static_cast<int>(p.shape.states), rank = static_cast<int>(p.shape.rank);
  const int part = (work.batch - portion.first_image) * static_cast<int>(p.plan.chunks) + work.chunk;
  const SumsOverTokens sums(params, part, work.scan, work.direction);
  const auto add = [&](float* to, float value) { *to = portion.first ? value : *to + value; };
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
#pragma unroll
  for (int mask = 1; mask < L::kLanes; mask *= 2) dskip += shuffle_xor(dskip, mask);
  if (work.first_channel + channel < p.shape.channels) {
    const int first = lane * L::kStates;
    float* row = sums.A_logs + int64_t{work.first_channel + channel} * states;
#pragma unroll
    for (int i = 0; i < L::kStates; ++i) {
      if (first + i < states) add(row + first + i, kLn2 * A.values[i] * dA.values[i]);
    }
    if (lane == 0) add(sums.skip + work.first_channel + channel, dskip);
  }
  block_sync();
#pragma unroll 1
  for (int i = work.thread; i < (rank + 1) * L::kChannels; i += L::kThreads) {
    const int r = i / L::kChannels, c = work.first_channel + i % L::kChannels;
    if (c < p.shape.channels) add(r < rank ? sums.weight + int64_t{c} * rank + r : sums.bias + c, shared.dweight[i]);
  }
}

// The address where the carries of the thread's channel are saved between two launches; null beyond D.
template <typename L>
__device__ float* waiting(const SS2DBackward& params, const Portion& portion, const Work<L>& work) {
  const SS2D& p = params.scan;
  const int channel = work.first_channel + work.thread / L::kLanes;
  const int64_t image = work.batch - portion.first_image;
  const int64_t row = (image * p.plan.scans() + work.scan) * p.plan.chunks + work.chunk;
  return channel < p.shape.channels ? params.carries + (row * p.shape.channels + channel) * L::kPadded : nullptr;
}

// Blocks per multiprocessor that the registers must allow: enough for 12 warps, if that does not cause spilling. On
// 12.0, the shared memory of the widest layout allows only one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
inline constexpr int kWidestBlocks = 1;
#else
inline constexpr int kWidestBlocks = 2;
#endif
template <typename L, bool kEndsOnly>
constexpr int kLeastBlocks = kEndsOnly            ? 512 / (2 * L::kThreads)
                             : L::kLanes > 4      ? 1
                             : L::kThreads == 128 ? kWidestBlocks
                                                  : 3;

// kEndsOnly: computes each chunk's final carry, over all of its tiles, instead of the gradients.
template <typename L, bool kEndsOnly>
__global__ void __launch_bounds__(2 * L::kThreads, (kLeastBlocks<L, kEndsOnly>))
    ss2d_bwd_kernel(const SS2DBackward params, const SS2DGeometry geometry, const Vectors vectors,
                    const Portion portion) {
  const SS2D& p = params.scan;
  Task<L> task{Work<L>(p, portion.first_image, portion.first_pair), vectors};
  const Work<L>& work = task.work;
  if (portion.begin >= work.tiles) return;
  const bool upwards = work.group == 0;
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;

  const auto shared_of = [&](int group) {
    const Shared<L> first_half(dynamic_shared(), geometry.row_bytes, p.shape.rank);
    return Shared<L>(group == 0 ? dynamic_shared() : first_half.end, geometry.row_bytes, p.shape.rank);
  };
  Shared<L> shared = shared_of(work.group);
  load_weights<L>(shared.weight, shared.bias, shared.skip, p, work);
  const int rank = static_cast<int>(p.shape.rank), padded = Shared<L>::padded_rank(rank);
#pragma unroll 1
  for (int i = work.thread; i < padded * L::kChannels; i += L::kThreads) {
    shared.dweight[i] = 0.0f;
    if (i >= rank * L::kChannels) shared.weight[i] = 0.0f;
  }
  const States<L> A = load_A<L>(p, work);
  States<L> carry = zero_states<L>();
  if (portion.begin > 0) {
    if (const float* from = waiting(params, portion, work)) carry = load_states<L>(from, lane);
  } else if (!kEndsOnly) {
    carry = chunk_start<L>(p, work, A, true);
  }
  States<L> dA = zero_states<L>();
  float dskip = 0.0f, steps = 0.0f;

  if (!kEndsOnly && work.thread == 0) *shared.task = task;
  const auto end = [&] { return portion.end < work.tiles ? portion.end : work.tiles; };

  // Both halves synchronise at every group, so they must have the same number of groups.
  const auto tile_at = [&](int iteration) {
    const int up = work.first_tile + iteration, down = work.first_tile + work.tiles - 1 - iteration;
    return upwards ? Tile<L>(p.shape, down, up, true) : Tile<L>(p.shape, up, down, false);
  };
  stage(shared, task.vectors, params, geometry, work, tile_at(portion.begin));
  for (int iteration = portion.begin; iteration < end(); ++iteration) {
    const Tile<L> tile = tile_at(iteration);
    copy_async_wait();
    block_sync();
    unpack(shared, params, geometry, portion, work, tile);
    block_sync();
    if constexpr (kEndsOnly) {
      if (iteration + 1 < end()) stage(shared, task.vectors, params, geometry, work, tile_at(iteration + 1));
      descend_tile<L>(shared.tokens + channel, SharedRows<L>{shared.C + lane * L::kStates}, tile.padded, A, carry,
                      steps);
    } else {
      descend<L>(shared, params, work, tile, A, carry, dA, dskip);
      const int thread = reread_thread();  // so that values derived from it need no registers during the scan
      shared = shared_of(thread / L::kThreads);
      task = *shared.task;
      task.work.thread = thread % L::kThreads;
      if (iteration + 1 < end()) stage(shared, task.vectors, params, geometry, work, tile_at(iteration + 1));
      project_back<L>(shared, params, work, tile);
      merge_tile<L>(params.maps, p, geometry, work, tile, iteration, [&](int place, int c) {
        const int token = upwards ? place : tile.padded - 1 - place;
        return shared.tokens[token * L::kPitch + c].u;
      });
    }
  }
  if constexpr (kEndsOnly) {
    store_chunk_end<L>(p, work, carry, steps, true);
  } else {
    if (end() < work.tiles) {
      if (float* to = waiting(params, portion, work)) store_states<L>(to, work.thread % L::kLanes, carry);
    }
    store_parameters<L>(shared, params, portion, work, A, dA, dskip);
  }
}

template <typename L>
int launch(const SS2DBackward& params, void* stream) {
  const SS2D& p = params.scan;
  const SS2DGeometry geometry(p.shape, p.x_dbl.dtype);
  const unsigned shared_bytes = 2 * shared_size<Shared<L>>(geometry, p.shape.rank);
  const Vectors vectors{copies_vectors<L>(p.u, p.shape.channels), copies_vectors<L>(params.dy, p.shape.channels)};
  if (blocks_of(p, p.plan.images) > INT32_MAX || p.shape.tokens() > INT32_MAX) return kInvalidValue;

  const auto launch_one = [&](auto kernel, const Portion& portion) {
    return launch_kernel(blocks_of(p, portion.images), 2 * L::kThreads, shared_bytes, stream, kernel, params, geometry,
                         vectors, portion);
  };
  const int tiles = static_cast<int>(p.plan.longest_chunk()), window = static_cast<int>(p.plan.window_tiles);
  const auto launch_images = [&](Portion portion) {
    portion.end = tiles;
    int error = p.plan.chunks > 1 ? launch_one(ss2d_bwd_kernel<L, true>, portion) : kSuccess;
    for (int begin = 0; begin < tiles && error == kSuccess; begin += window) {
      portion.begin = begin;
      portion.end = std::min(begin + window, tiles);
      portion.first = portion.first_image == 0 && begin == 0;
      error = launch_one(ss2d_bwd_kernel<L, false>, portion);
      if (error == kSuccess) error = launch_sum_rows(params, geometry, portion, L::kTokens, stream);
    }
    return error;
  };
  int error = kSuccess;
  for (int pair = 0; pair < 2 && error == kSuccess; pair += static_cast<int>(p.plan.pairs)) {
    Portion portion{};
    portion.first_pair = pair;
    for (int64_t image = 0; image < p.shape.batch && error == kSuccess; image += p.plan.images) {
      portion.first_image = static_cast<int>(image);
      portion.images = static_cast<int>(std::min(p.plan.images, p.shape.batch - image));
      error = launch_images(portion);
    }
    if (error == kSuccess) error = launch_sum_over_tokens(params, portion, stream);
  }
  return error;
}

// Calls `use` with the layout of an index; returns -1 if there is none.
template <typename Use>
int64_t with_layout(int64_t index, Use use) {
  switch (index) {
#define MTLKIT_CASE(index, ...) \
  case index:                   \
    return use(Layout<__VA_ARGS__>{});
    MTLKIT_SS2D_BACKWARD_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
    default:
      return -1;
  }
}

}  // namespace

int launch_ss2d_bwd(const SS2DBackward& params, void* stream) {
  return with_layout(params.scan.plan.layout, [&](auto layout) { return launch<decltype(layout)>(params, stream); });
}

int64_t ss2d_bwd_shared(int64_t layout, const SS2DShape& shape) {
  const SS2DGeometry geometry(shape, DType::kFloat32);
  return with_layout(
      layout, [&](auto layout) { return 2 * int64_t{shared_size<Shared<decltype(layout)>>(geometry, shape.rank)}; });
}

}  // namespace mtlkit::cuda
