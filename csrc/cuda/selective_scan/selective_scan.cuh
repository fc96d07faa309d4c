// What the kernels of selective_scan share: which tile a block works on, and how it comes into shared memory.
#pragma once

#include <type_traits>

#include "cuda/scan.cuh"
#include "cuda/selective_scan/selective_scan.h"

namespace mtlkit::cuda {

// Bytes that one asynchronous copy of a tensor's tokens moves; 0 where they must be moved one by one.
struct Units {
  int u, delta, B, C, dout;
};

// For a tensor whose tokens are the last dimension.
template <int kRank>
int copy_unit(const Tensor<kRank>& tensor, int64_t tokens) {
  const int64_t size = size_of(tensor.dtype);
  if (tensor.stride[kRank - 1] != 1) return 0;
  bool whole = tokens * size % 16 == 0 && reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  for (int i = 0; i < kRank - 1; ++i) whole = whole && tensor.stride[i] * size % 16 == 0;
  return whole ? 16 : size == 4 ? 4 : 0;
}

template <typename L>
struct Work {
  int thread, group_block, group, chunk, batch;
  int first_channel, channels;  // of the block; all within one group
  int first_tile, tiles;        // of the chunk

  __device__ explicit Work(const SelectiveScan& p) {
    const int groups = static_cast<int>(p.shape.groups), group_blocks = static_cast<int>(p.plan.group_blocks);
    const int chunks = static_cast<int>(p.plan.chunks), chunk_tiles = static_cast<int>(p.plan.chunk_tiles);
    const int group_channels = static_cast<int>(p.shape.channels) / groups;
    int block = static_cast<int>(blockIdx.x);
    group_block = block % group_blocks;
    block /= group_blocks;
    group = block % groups;
    block /= groups;
    chunk = block % chunks;
    batch = block / chunks;
    thread = static_cast<int>(threadIdx.x);
    first_channel = group * group_channels + group_block * L::kChannels;
    const int left_channels = group_channels - group_block * L::kChannels;
    channels = left_channels < L::kChannels ? left_channels : L::kChannels;
    first_tile = chunk * chunk_tiles;
    tiles = chunk == chunks - 1 ? static_cast<int>(p.plan.tiles) - first_tile : chunk_tiles;
  }
};

inline int64_t blocks_of(const SelectiveScan& p) {
  return p.shape.batch * p.plan.chunks * p.shape.groups * p.plan.group_blocks;
}

template <typename L>
struct Tile {
  int index, tokens, padded;  // padded: tokens, rounded up to whole groups
  int64_t first;              // of its tokens

  __device__ Tile(const SelectiveScan& p, int index) : index(index), first(int64_t{index} * L::kTokens) {
    const int64_t left = p.shape.tokens - first;
    tokens = static_cast<int>(left < L::kTokens ? left : L::kTokens);
    padded = round_up(tokens, kGroupTokens);
  }
};

// --- between global and shared memory
// -----------------------------------------------------------------------------------

// Staged lines, one a channel or state: kLinePitch bytes apart, tokens side by side.
template <typename L>
inline constexpr int kLinePitch = L::kTokens * 4 + 16;

// Copies `lines` lines of a tile's tokens. `from` is the first line's first token; strides count elements.
template <typename L>
__device__ void stage_lines(char* to, const char* from, int size, int64_t line_stride, int64_t token_stride, int lines,
                            const Tile<L>& tile, int unit, int thread) {
  if (unit > 0) {
    const int per_line = tile.tokens * size / unit;
#pragma unroll 1
    for (int i = thread; i < lines * per_line; i += L::kThreads) {
      const int line = i / per_line, at = i % per_line * unit;
      const char* source = from + line * line_stride * size + at;
      if (unit == 16) {
        copy_async<16>(to + line * kLinePitch<L> + at, source);
      } else {
        copy_async<4>(to + line * kLinePitch<L> + at, source);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < lines * L::kTokens; i += L::kThreads) {
    const int line = i / L::kTokens, token = i % L::kTokens;
    if (token >= tile.tokens) continue;
    const char* source = from + (line * line_stride + token * token_stride) * size;
    char* at = to + line * kLinePitch<L> + token * size;
    if (size == 4) {
      *reinterpret_cast<uint32_t*>(at) = *reinterpret_cast<const uint32_t*>(source);
    } else {
      *reinterpret_cast<uint16_t*>(at) = *reinterpret_cast<const uint16_t*>(source);
    }
  }
}

template <typename L>
__device__ void stage_channels(char* to, const Tensor<3>& tensor, const Work<L>& work, const Tile<L>& tile, int unit) {
  const int size = static_cast<int>(size_of(tensor.dtype));
  const char* from =
      static_cast<const char*>(tensor.data) +
      (work.batch * tensor.stride[0] + work.first_channel * tensor.stride[1] + tile.first * tensor.stride[2]) * size;
  stage_lines<L>(to, from, size, tensor.stride[1], tensor.stride[2], work.channels, tile, unit, work.thread);
}

template <typename L>
__device__ void stage_states(char* to, const Tensor<4>& tensor, int states, const Work<L>& work, const Tile<L>& tile,
                             int unit) {
  const int size = static_cast<int>(size_of(tensor.dtype));
  const char* from =
      static_cast<const char*>(tensor.data) +
      (work.batch * tensor.stride[0] + work.group * tensor.stride[1] + tile.first * tensor.stride[3]) * size;
  stage_lines<L>(to, from, size, tensor.stride[2], tensor.stride[3], states, tile, unit, work.thread);
}

// Element (batch, channel, token) of a tensor in global memory.
__device__ inline int64_t offset_of(const Tensor<3>& tensor, int batch, int channel, int64_t token) {
  return batch * tensor.stride[0] + channel * tensor.stride[1] + token * tensor.stride[2];
}
__device__ inline float read(const Tensor<3>& tensor, int64_t offset) {
  return element(static_cast<const char*>(tensor.data), tensor.dtype, offset);
}
__device__ inline void write(const Tensor<3>& tensor, int64_t offset, float value) {
  switch (tensor.dtype) {
    case DType::kBFloat16:
      static_cast<bf16*>(tensor.data)[offset] = from_float<bf16>(value);
      break;
    case DType::kFloat16:
      static_cast<f16*>(tensor.data)[offset] = from_float<f16>(value);
      break;
    default:
      static_cast<float*>(tensor.data)[offset] = value;
  }
}

// --- in shared memory
// -----------------------------------------------------------------------------------------------------

// Rows of B or C from staged lines, as floats, zero beyond N and the tile's end.
template <typename L>
__device__ void unpack_rows(float* rows, const char* lines, DType dtype, int states, const Tile<L>& tile, int thread) {
  constexpr int kPerRow = L::kPadded / L::kQuad;
#pragma unroll 2
  for (int i = thread; i < tile.padded * kPerRow; i += L::kThreads) {
    const int token = i / kPerRow, first = i % kPerRow * L::kQuad;
    Pack<float, L::kQuad> quad;
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) {
      const bool real = token < tile.tokens && first + q < states;
      quad.values[q] = real ? element(lines + (first + q) * kLinePitch<L>, dtype, token) : 0.0f;
    }
    store(rows + token * L::kPadded + first, quad);
  }
}

// The time step of a token and its derivative by delta; none beyond the tile's end and the block's channels.
__device__ inline Softplus time_step(const SelectiveScan& p, float delta, float bias) {
  return p.delta_softplus ? softplus(delta + bias) : Softplus{delta + bias, 1.0f};
}

// A log2(e) of the thread's states, zero beyond the block's channels and N.
template <typename L>
__device__ States<L> load_A(const SelectiveScan& p, const Work<L>& work) {
  const int channel = work.thread / L::kLanes, first = work.thread % L::kLanes * L::kStates;
  const int states = static_cast<int>(p.shape.states);
  States<L> A = zero_states<L>();
  if (channel < work.channels) {
    const float* row = p.A + int64_t{work.first_channel + channel} * states;
#pragma unroll
    for (int i = 0; i < L::kStates; ++i) {
      if (first + i < states) A.values[i] = decay_rate(row[first + i]);
    }
  }
  return A;
}

// B or C as the scan takes it: the tile's rows or, where it is constant, the channel's own values.
template <bool kConstant, typename L>
__device__ auto rows_of(const SelectiveScan& p, const Work<L>& work, const float* rows, const Tensor<4>& tensor) {
  const int channel = work.thread / L::kLanes, first = work.thread % L::kLanes * L::kStates;
  if constexpr (kConstant) {
    OwnRows<L> result{zero_states<L>()};
#pragma unroll
    for (int i = 0; i < L::kStates; ++i) {
      if (channel < work.channels && first + i < p.shape.states) {
        const int64_t at = (work.first_channel + channel) * tensor.stride[0] + (first + i) * tensor.stride[1];
        result.own.values[i] = element(static_cast<const char*>(tensor.data), tensor.dtype, at);
      }
    }
    return result;
  } else {
    return SharedRows<L>{rows + first};
  }
}

// The states, or gradients of states, with which this chunk starts; `initial`: those before the first chunk passed.
template <typename L>
__device__ States<L> chunk_start(const SelectiveScan& p, const Work<L>& work, const States<L>& A,
                                 const States<L>& initial, bool reverse) {
  const int channel = work.thread / L::kLanes, chunks = static_cast<int>(p.plan.chunks);
  const int before = reverse ? chunks - 1 - work.chunk : work.chunk;
  if (before == 0 || channel >= work.channels) return initial;
  const int64_t first = int64_t{work.batch} * chunks + (reverse ? chunks - 1 : 0);
  const int64_t row = first * p.shape.channels + work.first_channel + channel;
  const int64_t stride = reverse ? -p.shape.channels : p.shape.channels;
  return carry_in<L>(initial, A, work.thread % L::kLanes, before, p.ends + row * L::kPadded, stride * L::kPadded,
                     p.steps + row, stride);
}

// What a chunk leaves: for the chunk_start of others.
template <typename L>
__device__ void store_chunk_end(const SelectiveScan& p, const Work<L>& work, const States<L>& end, float steps) {
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
  if (channel >= work.channels) return;
  const int64_t chunk = work.batch * p.plan.chunks + work.chunk;
  const int64_t row = chunk * p.shape.channels + work.first_channel + channel;
  store_states<L>(p.ends + row * L::kPadded, lane, end);
  if (lane == 0) p.steps[row] = steps;
}

// Where the state of the thread's channel before a tile is kept.
template <typename L>
__device__ float* checkpoint(const SelectiveScan& p, const Work<L>& work, const Tile<L>& tile) {
  const int64_t row = (work.batch * p.plan.tiles + tile.index) * p.shape.channels + work.first_channel;
  return p.checkpoints + (row + work.thread / L::kLanes) * L::kPadded;
}

// Calls `use` with the layout of the plan, whether B is constant, and whether C is.
template <typename Use>
int with_layout(const SelectiveScan& p, Use use) {
  using Varies = std::false_type;
  using IsConstant = std::true_type;
  switch (p.plan.layout) {
#define MTLKIT_CASE(index, ...) \
  case index:                   \
    return use(Layout<__VA_ARGS__>{}, Varies{}, Varies{});
    MTLKIT_SELECTIVE_SCAN_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
#define MTLKIT_CASE(index, ...)                                                                          \
  case index: {                                                                                          \
    const Layout<__VA_ARGS__> layout;                                                                    \
    if (p.variable_B) return use(layout, Varies{}, IsConstant{});                                        \
    return p.variable_C ? use(layout, IsConstant{}, Varies{}) : use(layout, IsConstant{}, IsConstant{}); \
  }
    MTLKIT_SELECTIVE_SCAN_CONSTANT_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
    default:
      return kInvalidValue;
  }
}

}  // namespace mtlkit::cuda
