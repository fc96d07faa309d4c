// Shared by the kernels of selective_scan: a block's work and tiles, and the copies into shared memory.
#pragma once

#include <numeric>
#include <type_traits>

#include "cuda/scan.cuh"
#include "cuda/selective_scan/selective_scan.h"

namespace mtlkit::cuda {

// Bytes per asynchronous copy, for each tensor; 0 if its elements must be moved one by one.
struct Units {
  int u, delta, B, C, dout;
};

// The unit for a tensor whose `count` elements along `dim` are copied together.
inline int copy_unit(const Tensor<4>& tensor, int64_t count, int dim = 3) {
  const int64_t size = size_of(tensor.dtype);
  if (tensor.stride[dim] != 1) return 0;
  for (const int unit : {16, 4}) {
    bool whole = count * size % unit == 0 && reinterpret_cast<uintptr_t>(tensor.data) % unit == 0;
    for (int i = 0; i < 4; ++i) whole = whole && (i == dim || tensor.stride[i] * size % unit == 0);
    if (whole) return unit;
  }
  return 0;
}

// The units of all tensors: along tokens or, with an order, along the channels of a group and the states.
template <typename L, bool kOrdered>
Units copy_units(const SelectiveScan& p, const Tensor<4>& dout) {
  if constexpr (kOrdered) {
    const int64_t channels = std::gcd(p.shape.channels / p.shape.groups, int64_t{L::kChannels});  // divides a block's
    const int64_t states = p.shape.states;
    return {copy_unit(p.u, channels, 2), copy_unit(p.delta, channels, 2), copy_unit(p.B, states, 2),
            copy_unit(p.C, states, 2), copy_unit(dout, channels, 2)};
  } else {
    const int64_t tokens = p.shape.tokens;
    return {copy_unit(p.u, tokens), copy_unit(p.delta, tokens), copy_unit(p.B, tokens), copy_unit(p.C, tokens),
            copy_unit(dout, tokens)};
  }
}

template <typename L>
struct Work {
  int thread, group_block, group, chunk, batch;
  int first_channel, channels;  // of the block; all in one group
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

// The token that a block visits at a step of a tile.
template <bool kOrdered>
struct Visits {
  const int32_t* table;  // from the tile's first step on; null to visit tokens in sequence order
  int64_t first;

  template <typename L>
  __device__ Visits(const SelectiveScan& p, const Work<L>& work, const Tile<L>& tile) : table(), first(tile.first) {
    if constexpr (kOrdered) {
      if (p.order.table) {
        table = p.order.table + work.batch * p.order.table_stride + work.group * p.shape.tokens + tile.first;
      }
    }
  }
  __device__ int64_t operator[](int step) const {
    if constexpr (kOrdered) {
      if (table) return table[step];
    }
    return first + step;
  }
};

// Whether a new sequence begins at a step; false for the first step.
template <typename L>
__device__ bool begins(const SelectiveScan& p, const Work<L>& work, const Visits<true>& visits, int step) {
  if (!p.order.sequences || visits.first + step == 0) return false;
  const int32_t* sequences = p.order.sequences + work.batch * p.order.tokens;
  return sequences[visits[step]] != sequences[visits[step - 1]];
}

// --- between global and shared memory --------------------------------------------------------------------------------

// Staged lines, one per channel or state: kLinePitch bytes apart, tokens contiguous.
template <typename L>
inline constexpr int kLinePitch = L::kTokens * 4 + 16;

// With an order, rows are staged instead, one per token: `count` channels or states, contiguous.
template <int kCount>
inline constexpr int kRowPitch = kCount * 4 + 16;
template <typename L, int kCount, bool kOrdered>
inline constexpr int kStagedBytes = kOrdered ? L::kTokens * kRowPitch<kCount> : kCount * kLinePitch<L>;

// Element `index`, of kCount, of a token.
template <typename L, int kCount, bool kOrdered>
__device__ float staged(const char* memory, DType dtype, int index, int token) {
  if constexpr (kOrdered) {
    return element(memory + token * kRowPitch<kCount>, dtype, index);
  } else {
    return element(memory + index * kLinePitch<L>, dtype, token);
  }
}

__device__ inline void copy_element(char* to, const char* from, int size) {
  if (size == 4) {
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
  } else {
    *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
  }
}

// Copies the rows of a tile's tokens, of `length` elements each. `from` is the row of token 0; strides count elements.
template <typename L, int kCount>
__device__ void stage_rows(char* to, const char* from, int size, int64_t stride, int64_t token_stride, int length,
                           const Visits<true>& visits, const Tile<L>& tile, int unit, int thread) {
  if (unit > 0) {
    const int per_row = length * size / unit;
#pragma unroll 1
    for (int i = thread; i < tile.tokens * per_row; i += L::kThreads) {
      const int token = i / per_row, at = i % per_row * unit;
      const char* source = from + visits[token] * token_stride * size + at;
      if (unit == 16) {
        copy_async<16>(to + token * kRowPitch<kCount> + at, source);
      } else {
        copy_async<4>(to + token * kRowPitch<kCount> + at, source);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < tile.tokens * kCount; i += L::kThreads) {
    const int token = i / kCount, index = i % kCount;
    if (index >= length) continue;
    copy_element(to + token * kRowPitch<kCount> + index * size,
                 from + (visits[token] * token_stride + index * stride) * size, size);
  }
}

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
    copy_element(to + line * kLinePitch<L> + token * size, from + (line * line_stride + token * token_stride) * size,
                 size);
  }
}

// Copies a tile of `length` channels or states of the block's group, from `first` on, to memory for kCount.
template <int kCount, typename L, bool kOrdered>
__device__ void stage_tensor(char* to, const Tensor<4>& tensor, int first, int length, const Work<L>& work,
                             const Tile<L>& tile, const Visits<kOrdered>& visits, int unit) {
  const int size = static_cast<int>(size_of(tensor.dtype));
  const int64_t offset = work.batch * tensor.stride[0] + work.group * tensor.stride[1] + first * tensor.stride[2];
  const char* from = static_cast<const char*>(tensor.data) + offset * size;
  if constexpr (kOrdered) {
    stage_rows<L, kCount>(to, from, size, tensor.stride[2], tensor.stride[3], length, visits, tile, unit, work.thread);
  } else {
    stage_lines<L>(to, from + tile.first * tensor.stride[3] * size, size, tensor.stride[2], tensor.stride[3], length,
                   tile, unit, work.thread);
  }
}

template <typename L, bool kOrdered>
__device__ void stage_channels(char* to, const Tensor<4>& tensor, const Work<L>& work, const Tile<L>& tile,
                               const Visits<kOrdered>& visits, int unit) {
  stage_tensor<L::kChannels>(to, tensor, work.group_block * L::kChannels, work.channels, work, tile, visits, unit);
}

template <typename L, bool kOrdered>
__device__ void stage_states(char* to, const Tensor<4>& tensor, int states, const Work<L>& work, const Tile<L>& tile,
                             const Visits<kOrdered>& visits, int unit) {
  stage_tensor<L::kPadded>(to, tensor, 0, states, work, tile, visits, unit);
}

// Element (channel of the block, token) of a tensor in global memory.
template <typename L>
__device__ int64_t offset_of(const Tensor<4>& tensor, const Work<L>& work, int channel, int64_t token) {
  return work.batch * tensor.stride[0] + work.group * tensor.stride[1] +
         (work.group_block * L::kChannels + channel) * tensor.stride[2] + token * tensor.stride[3];
}
__device__ inline float read(const Tensor<4>& tensor, int64_t offset) {
  return element(static_cast<const char*>(tensor.data), tensor.dtype, offset);
}
__device__ inline void write(const Tensor<4>& tensor, int64_t offset, float value) {
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

// --- in shared memory ------------------------------------------------------------------------------------------------

// The channel and token of element `i` of a tile, ordered so that neighbouring threads take contiguous elements.
struct Place {
  int channel, token;
};
template <typename L, bool kOrdered>
__device__ Place place_of(int i) {
  if constexpr (kOrdered) {
    return {i % L::kChannels, i / L::kChannels};
  } else {
    return {i / L::kTokens, i % L::kTokens};
  }
}

// An upper bound on the index of the elements that belong to the block's channels.
template <typename L, bool kOrdered>
__device__ int stored(const Work<L>& work) {
  return (kOrdered ? L::kChannels : work.channels) * L::kTokens;
}

// Converts the staged rows of B or C to floats, zero beyond N and the tile's end.
template <bool kOrdered, typename L>
__device__ void unpack_rows(float* rows, const char* memory, DType dtype, int states, const Tile<L>& tile, int thread) {
  constexpr int kPerRow = L::kPadded / L::kQuad;
#pragma unroll 2
  for (int i = thread; i < tile.padded * kPerRow; i += L::kThreads) {
    const int token = i / kPerRow, first = i % kPerRow * L::kQuad;
    Pack<float, L::kQuad> quad;
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) {
      const bool real = token < tile.tokens && first + q < states;
      quad.values[q] = real ? staged<L, L::kPadded, kOrdered>(memory, dtype, first + q, token) : 0.0f;
    }
    store(rows + token * L::kPadded + first, quad);
  }
}

// The time step of a token and its derivative with respect to delta.
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

// B or C in the form that the scan reads: the tile's rows, or the channel's own values if it is constant.
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

// The time step, with the sign bit set if the token begins a sequence.
template <typename L, bool kOrdered>
__device__ float signed_step(const SelectiveScan& p, const Work<L>& work, const Visits<kOrdered>& visits, int token,
                             float dt) {
  if constexpr (kOrdered) {
    return begins(p, work, visits, token) ? -fabsf(dt) : fabsf(dt);
  } else {
    return dt;
  }
}

// The offset of the thread's states in a contiguous (B, D, N) tensor.
template <typename L>
__device__ int64_t state_offset(const SelectiveScan& p, const Work<L>& work) {
  const int64_t channel = work.batch * p.shape.channels + work.first_channel + work.thread / L::kLanes;
  return channel * p.shape.states + work.thread % L::kLanes * L::kStates;
}

// Calls `use` with the index of each of the thread's states that exists.
template <typename L, typename Use>
__device__ void for_states(const SelectiveScan& p, const Work<L>& work, Use use) {
  if (work.thread / L::kLanes >= work.channels) return;
#pragma unroll
  for (int i = 0; i < L::kStates; ++i) {
    if (work.thread % L::kLanes * L::kStates + i < p.shape.states) use(i);
  }
}

template <typename L>
__device__ States<L> initial_state(const SelectiveScan& p, const Work<L>& work) {
  States<L> result = zero_states<L>();
  if (!p.initial_state) return result;
  const float* from = p.initial_state + state_offset(p, work);
  for_states(p, work, [&](int i) { result.values[i] = from[i]; });
  return result;
}

template <typename L>
__device__ void store_state(float* to, const SelectiveScan& p, const Work<L>& work, const States<L>& state) {
  to += state_offset(p, work);
  for_states(p, work, [&](int i) { to[i] = state.values[i]; });
}

// The states, or their gradients, at the start of this chunk; `initial` are those before the first chunk in scan order.
template <typename L, bool kOrdered>
__device__ States<L> chunk_start(const SelectiveScan& p, const Work<L>& work, const States<L>& A,
                                 const States<L>& initial, bool reverse) {
  const int channel = work.thread / L::kLanes, chunks = static_cast<int>(p.plan.chunks);
  const int before = reverse ? chunks - 1 - work.chunk : work.chunk;
  if (before == 0 || channel >= work.channels) return initial;
  const int64_t first = int64_t{work.batch} * chunks + (reverse ? chunks - 1 : 0);
  const int64_t row = first * p.shape.channels + work.first_channel + channel;
  const int64_t stride = reverse ? -p.shape.channels : p.shape.channels;
  return carry_in<L, kOrdered>(initial, A, work.thread % L::kLanes, before, p.ends + row * L::kPadded,
                               stride * L::kPadded, p.steps + row, stride);
}

// Stores a chunk's last state and its time steps, for the chunk_start of other chunks.
template <typename L>
__device__ void store_chunk_end(const SelectiveScan& p, const Work<L>& work, const States<L>& end, float steps) {
  const int channel = work.thread / L::kLanes, lane = work.thread % L::kLanes;
  if (channel >= work.channels) return;
  const int64_t chunk = work.batch * p.plan.chunks + work.chunk;
  const int64_t row = chunk * p.shape.channels + work.first_channel + channel;
  store_states<L>(p.ends + row * L::kPadded, lane, end);
  if (lane == 0) p.steps[row] = steps;
}

// The address where the state of the thread's channel before a tile is saved.
template <typename L>
__device__ float* checkpoint(const SelectiveScan& p, const Work<L>& work, const Tile<L>& tile) {
  const int64_t row = (work.batch * p.plan.tiles + tile.index) * p.shape.channels + work.first_channel;
  return p.checkpoints + (row + work.thread / L::kLanes) * L::kPadded;
}

// Calls `use` with the plan's layout and three flags: constant B, constant C, and an order.
template <typename Use>
int with_layout(const SelectiveScan& p, Use use) {
  using Varies = std::false_type;
  using IsConstant = std::true_type;
  using AsTheyCome = std::false_type;
  using IsOrdered = std::true_type;
  switch (p.plan.layout) {
#define MTLKIT_CASE(index, ...)                                                           \
  case index:                                                                             \
    return p.order.by_token ? use(Layout<__VA_ARGS__>{}, Varies{}, Varies{}, IsOrdered{}) \
                            : use(Layout<__VA_ARGS__>{}, Varies{}, Varies{}, AsTheyCome{});
    MTLKIT_SELECTIVE_SCAN_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
#define MTLKIT_CASE(index, ...)                                                  \
  case index: {                                                                  \
    const Layout<__VA_ARGS__> layout;                                            \
    if (p.variable_B) return use(layout, Varies{}, IsConstant{}, AsTheyCome{});  \
    return p.variable_C ? use(layout, IsConstant{}, Varies{}, AsTheyCome{})      \
                        : use(layout, IsConstant{}, IsConstant{}, AsTheyCome{}); \
  }
    MTLKIT_SELECTIVE_SCAN_CONSTANT_LAYOUTS(MTLKIT_CASE)
#undef MTLKIT_CASE
    default:
      return kInvalidValue;
  }
}

}  // namespace mtlkit::cuda
