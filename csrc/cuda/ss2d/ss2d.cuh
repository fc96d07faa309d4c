// Shared by the kernels of ss2d: a block's work and tiles, and the copies into shared memory.
#pragma once

#include "cuda/scan.cuh"
#include "cuda/ss2d/ss2d.h"

namespace mtlkit::cuda {

inline constexpr int kRowVector = 4;  // the least values of x_dbl per copy; the values of a pixel are a multiple

// Values that the kernels need in addition to SS2D, computed once before the launch.
struct SS2DGeometry {
  Divisor height, width;
  int row_bytes;     // bytes of whole vectors that cover one direction's row of a pixel
  bool map_vectors;  // whether rows of the maps can be moved four floats at a time

  SS2DGeometry(const SS2DShape& shape, DType dtype)
      : height(static_cast<uint32_t>(shape.height)),
        width(static_cast<uint32_t>(shape.width)),
        map_vectors(shape.channels % 4 == 0) {
    int64_t vectors = 0;
    for (int64_t k = 0; k < kDirections; ++k) {
      vectors = std::max(vectors, ceil_div(k * shape.row() % kRowVector + shape.row(), kRowVector));
    }
    row_bytes = static_cast<int>(vectors * kRowVector * size_of(dtype));
  }
};

// Whether tiles of `tensor` can be copied 16 bytes at a time along the channels.
template <typename L>
bool copies_vectors(const Tensor<4>& tensor, int64_t channels) {
  const int64_t size = size_of(tensor.dtype);
  const auto whole = [&](int64_t elements) { return elements * size % 16 == 0; };
  return tensor.stride[1] == 1 && whole(channels) && whole(L::kChannels) && whole(tensor.stride[0]) &&
         whole(tensor.stride[2]) && whole(tensor.stride[3]) && reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
}

// The work of one half of a block: one direction of one chunk, for some channels.
template <typename L>
struct Work {
  int pair, group, direction;  // group 0 scans upwards, 1 downwards
  int scan;                    // index of the direction in the launch
  int thread;                  // in the group
  int batch, channel_block, chunk, first_channel;
  int first_tile, tiles;  // of the chunk

  __device__ explicit Work(const SS2D& p, int first_image = 0, int first_pair = 0) {
    const int channel_blocks = static_cast<int>(p.plan.channel_blocks), chunks = static_cast<int>(p.plan.chunks);
    const int pairs = static_cast<int>(p.plan.pairs);
    int block = static_cast<int>(blockIdx.x);
    channel_block = block % channel_blocks;
    block /= channel_blocks;
    const int pair_of_launch = block % pairs;
    pair = first_pair + pair_of_launch;
    block /= pairs;
    chunk = block % chunks;
    batch = first_image + block / chunks;
    group = threadIdx.x / L::kThreads;
    thread = threadIdx.x % L::kThreads;
    direction = pair + 2 * group;
    scan = pair_of_launch + pairs * group;
    first_channel = channel_block * L::kChannels;
    first_tile = chunk * static_cast<int>(p.plan.chunk_tiles);
    tiles = static_cast<int>(p.plan.tiles_of(chunk));
  }

  // The number of chunks that come before this one in scan order, or in reverse order.
  __device__ int chunks_before(const SS2D& p, bool reverse) const {
    return (group == 0) == !reverse ? chunk : static_cast<int>(p.plan.chunks) - 1 - chunk;
  }
};

inline int64_t blocks_of(const SS2D& p, int64_t images) {
  return images * p.plan.chunks * p.plan.pairs * p.plan.channel_blocks;
}

// One tile of one direction.
template <typename L>
struct Tile {
  int index, tokens, padded;  // tokens: number of pixels; padded: rounded up to whole groups
  bool upwards;

  __device__ Tile(const SS2DShape& shape, int index, bool upwards)
      : index(index), tokens(tokens_of(shape, index)), padded(round_up(tokens, kGroupTokens)), upwards(upwards) {}

  // A tile padded to as many groups as the larger of this tile and `other` has.
  __device__ Tile(const SS2DShape& shape, int index, int other, bool upwards) : Tile(shape, index, upwards) {
    const int others = round_up(tokens_of(shape, other), kGroupTokens);
    if (others > padded) padded = others;
  }

  __device__ static int tokens_of(const SS2DShape& shape, int index) {
    const int64_t left = shape.tokens() - int64_t{index} * L::kTokens;
    return static_cast<int>(left < L::kTokens ? left : L::kTokens);
  }

  // The place of a token in the tile's image order, given its place in scan order; places from `tokens` on are padding.
  __device__ int place(int token) const { return upwards ? token : padded - 1 - token; }
};

struct Pixel {
  uint32_t y, x;
};

// A tile's pixel, given its place in the order of the pair.
template <typename L>
__device__ Pixel pixel_at(const SS2DGeometry& geometry, int pair, const Tile<L>& tile, int place) {
  const Divisor& side = pair == 0 ? geometry.width : geometry.height;
  const uint32_t index = static_cast<uint32_t>(tile.index) * L::kTokens + place;
  const uint32_t line = side.divide(index), along = index - line * side.value;
  return pair == 0 ? Pixel{line, along} : Pixel{along, line};
}

// The same as an index into the image.
template <typename L>
__device__ int64_t index_at(const SS2DGeometry& geometry, int pair, const Tile<L>& tile, int place) {
  if (pair == 0) return int64_t{tile.index} * L::kTokens + place;
  const Pixel pixel = pixel_at(geometry, pair, tile, place);
  return int64_t{pixel.y} * geometry.width.value + pixel.x;
}

// --- from global to shared memory, asynchronously where alignment allows ---------------------------------------------

// Copies the rows of a tile's direction unconverted, `geometry.row_bytes` each, from the last vector boundary before
// the row.
template <typename L, int kBytes>
__device__ void stage_rows(char* to, const SS2D& p, const SS2DGeometry& geometry, const Work<L>& work,
                           const Tile<L>& tile) {
  const int64_t size = size_of(p.x_dbl.dtype), row = p.shape.row() * size;
  const int64_t start = work.direction * row / kBytes * kBytes;
  const char* image =
      static_cast<const char*>(p.x_dbl.data) + work.batch * p.shape.tokens() * kDirections * row + start;
  const int vectors = geometry.row_bytes / kBytes;
  const int64_t room = kDirections * row - start;  // left in the pixel: the last direction may have less
  const int lanes = vectors < L::kThreads ? vectors : L::kThreads;
  const int at_once = L::kThreads / lanes;
  const int first = work.thread / lanes;
  if (first >= at_once) return;
#pragma unroll 1
  for (int place = first; place < tile.tokens; place += at_once) {
    const char* from = image + index_at(geometry, work.pair, tile, place) * kDirections * row;
    for (int i = work.thread % lanes * kBytes; i < geometry.row_bytes && i < room; i += lanes * kBytes) {
      copy_async<kBytes>(to + place * geometry.row_bytes + i, from + i);
    }
  }
}

// Copies a tile of u or dy, (L::kTokens, kChannels), in its own dtype. Does not write channels beyond D.
template <typename L>
__device__ void stage_channels(char* to, const Tensor<4>& tensor, bool vectors, const SS2D& p,
                               const SS2DGeometry& geometry, const Work<L>& work, const Tile<L>& tile) {
  const int size = static_cast<int>(size_of(tensor.dtype));
  const char* image = static_cast<const char*>(tensor.data) +
                      (work.batch * tensor.stride[0] + work.first_channel * tensor.stride[1]) * size;
  const auto address = [&](int place, int channel) {
    const Pixel pixel = pixel_at(geometry, work.pair, tile, place);
    return image + (channel * tensor.stride[1] + pixel.y * tensor.stride[2] + pixel.x * tensor.stride[3]) * size;
  };
  if (vectors) {
    const int per_vector = 16 / size, per_row = L::kChannels / per_vector;
#pragma unroll 1
    for (int i = work.thread; i < tile.tokens * per_row; i += L::kThreads) {
      const int place = i / per_row, channel = i % per_row * per_vector;
      if (work.first_channel + channel < p.shape.channels) {
        copy_async<16>(to + (place * L::kChannels + channel) * size, address(place, channel));
      }
    }
    return;
  }
  const bool channels_first = tensor.stride[1] != 1;  // neighbouring threads then take neighbouring pixels
#pragma unroll 1
  for (int i = work.thread; i < L::kTokens * L::kChannels; i += L::kThreads) {
    const int place = channels_first ? i % L::kTokens : i / L::kChannels;
    const int channel = channels_first ? i / L::kTokens : i % L::kChannels;
    if (place >= tile.tokens || work.first_channel + channel >= p.shape.channels) continue;
    const char* from = address(place, channel);
    char* at = to + (place * L::kChannels + channel) * size;
    if (size == 4) {
      *reinterpret_cast<uint32_t*>(at) = *reinterpret_cast<const uint32_t*>(from);
    } else {
      *reinterpret_cast<uint16_t*>(at) = *reinterpret_cast<const uint16_t*>(from);
    }
  }
}

// --- in shared memory ------------------------------------------------------------------------------------------------

// Bytes of a struct of shared memory that is constructed from an address, the length of a row and R.
template <typename Shared>
unsigned shared_size(const SS2DGeometry& geometry, int64_t rank) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(Shared(nullptr, geometry.row_bytes, rank).end));
}

// Elements between the start of the staged bytes and the row.
template <typename L>
__device__ int row_skew(const SS2D& p, const Work<L>& work) {
  return static_cast<int>(static_cast<uint32_t>(work.direction) * static_cast<uint32_t>(p.shape.row()) % kRowVector);
}

// Converts the rows B and C of a tile to floats, in scan order, zero beyond N and beyond the tile's end.
template <typename L, typename T>
__device__ void unpack_states(float* B, float* C, const char* rows, const SS2D& p, const SS2DGeometry& geometry,
                              const Work<L>& work, const Tile<L>& tile, int skew) {
  constexpr int kPerRow = 2 * L::kPadded / L::kQuad;
  const int states = static_cast<int>(p.shape.states), rank = static_cast<int>(p.shape.rank);
#pragma unroll 2
  for (int i = work.thread; i < tile.padded * kPerRow; i += L::kThreads) {
    const int token = i / kPerRow, place = tile.place(token);
    const bool is_C = i % kPerRow >= kPerRow / 2;
    const int first = i % (kPerRow / 2) * L::kQuad;
    const T* from = reinterpret_cast<const T*>(rows + place * geometry.row_bytes) + skew + rank + (is_C ? states : 0);
    Pack<float, L::kQuad> quad;
#pragma unroll
    for (int q = 0; q < L::kQuad; ++q) {
      quad.values[q] = place < tile.tokens && first + q < states ? to_float(from[first + q]) : 0.0f;
    }
    store((is_C ? C : B) + token * L::kPadded + first, quad);
  }
}

// Computes the time steps of a tile: calls `use(token, channel, place, dt)` for each token in scan order and each
// channel, with the softplus of the projection; dt is zero beyond the end or D.
template <typename L, typename T, typename Use>
__device__ void project_steps(const char* rows, const float* weight, const float* bias, const SS2D& p,
                              const SS2DGeometry& geometry, const Work<L>& work, const Tile<L>& tile, int skew,
                              Use use) {
  constexpr int kAtOnce = 4;
  const int channel = work.thread % L::kChannels;
  const int rank = static_cast<int>(p.shape.rank);
  const bool inside = work.first_channel + channel < p.shape.channels;
  for (int first = work.thread / L::kChannels; first < tile.padded; first += kAtOnce * L::kLanes) {
    const T* row[kAtOnce];
    float sum[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int token = first + j * L::kLanes;
      const int place = token < tile.padded ? tile.place(token) : 0;
      row[j] = reinterpret_cast<const T*>(rows + place * geometry.row_bytes) + skew;
      sum[j] = bias[channel];
    }
#pragma unroll 2
    for (int r = 0; r < rank; ++r) {
      const float w = weight[r * L::kChannels + channel];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) sum[j] += w * to_float(row[j][r]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int token = first + j * L::kLanes;
      if (token >= tile.padded) break;
      const int place = tile.place(token);
      const bool real = inside && place < tile.tokens;
      const Softplus step = softplus(sum[j]);
      use(token, channel, place, real, real ? step.value : 0.0f, step.slope);
    }
  }
}

// The parameters of the block's channels: weight (R, kChannels), bias and skip (kChannels), zero beyond D.
template <typename L>
__device__ void load_weights(float* weight, float* bias, float* skip, const SS2D& p, const Work<L>& work) {
  const int64_t row = work.direction * p.shape.channels + work.first_channel;
  const int rank = static_cast<int>(p.shape.rank);
#pragma unroll 1
  for (int i = work.thread; i < L::kChannels * rank; i += L::kThreads) {
    const int channel = i / rank, r = i % rank;
    const bool inside = work.first_channel + channel < p.shape.channels;
    weight[r * L::kChannels + channel] = inside ? p.dt_weight[(row + channel) * rank + r] : 0.0f;
  }
#pragma unroll 1
  for (int channel = work.thread; channel < L::kChannels; channel += L::kThreads) {
    const bool inside = work.first_channel + channel < p.shape.channels;
    bias[channel] = inside ? p.dt_bias[row + channel] : 0.0f;
    skip[channel] = inside ? p.Ds[row + channel] : 0.0f;
  }
}

// A log2(e) of the thread's states; zero beyond D and N.
template <typename L>
__device__ States<L> load_A(const SS2D& p, const Work<L>& work) {
  const int channel = work.first_channel + work.thread / L::kLanes;
  const int first = work.thread % L::kLanes * L::kStates;
  States<L> A = zero_states<L>();
  if (channel < p.shape.channels) {
    const float* row = p.A_logs + (work.direction * p.shape.channels + channel) * p.shape.states;
#pragma unroll
    for (int i = 0; i < L::kStates; ++i) {
      if (first + i < p.shape.states) A.values[i] = decay_rate(-expf(row[first + i]));
    }
  }
  return A;
}

// The row of the block's first channel in `ends` and `steps`, for chunk `place` in scan order.
template <typename L>
__device__ int64_t end_row(const SS2D& p, const Work<L>& work, int place) {
  const int64_t scan = work.batch * p.plan.scans() + work.scan;
  return (scan * (p.plan.chunks - 1) + place) * p.shape.channels;
}

// The states, or their gradients, at the start of this chunk: zeros, or the result of the chunks before it.
template <typename L>
__device__ States<L> chunk_start(const SS2D& p, const Work<L>& work, const States<L>& A, bool reverse) {
  const int channel = work.first_channel + work.thread / L::kLanes;
  const int before = work.chunks_before(p, reverse);
  if (before == 0 || channel >= p.shape.channels) return zero_states<L>();
  const int64_t row = end_row(p, work, 0) + channel;
  return carry_in<L>(zero_states<L>(), A, work.thread % L::kLanes, before, p.ends + row * L::kPadded,
                     p.shape.channels * L::kPadded, p.steps + row, p.shape.channels);
}

// Stores a chunk's last state and its time steps, for the chunk_start of other chunks.
template <typename L>
__device__ void store_chunk_end(const SS2D& p, const Work<L>& work, const States<L>& end, float steps, bool reverse) {
  const int channel = work.first_channel + work.thread / L::kLanes;
  const int before = work.chunks_before(p, reverse);
  if (channel >= p.shape.channels || before == p.plan.chunks - 1) return;
  const int64_t row = end_row(p, work, before) + channel;
  const int lane = work.thread % L::kLanes;
  store_states<L>(p.ends + row * L::kPadded, lane, end);
  if (lane == 0) p.steps[row] = steps;
}

// The address where the state of the thread's channel before a tile is saved; null beyond D, and for the scan's first
// tile, whose state is zero.
template <typename L>
__device__ float* checkpoint(const SS2D& p, const Work<L>& work, const Tile<L>& tile) {
  const int channel = work.first_channel + work.thread / L::kLanes, kept = static_cast<int>(p.plan.tiles) - 1;
  const int place = tile.index - (tile.upwards ? 1 : 0);
  if (channel >= p.shape.channels || place < 0 || place == kept) return nullptr;
  const int64_t row = (int64_t{work.batch} * kDirections + work.direction) * kept + place;
  return p.checkpoints + (row * p.shape.channels + channel) * L::kPadded;
}

// Merges a tile into the pair's map in `iteration`: the direction that reaches the tile first writes, the other adds.
// If both pairs share a map, both directions of the second pair add. value(place, channel) reads shared memory. All
// threads of the block must call it.
template <typename L, typename Value>
__device__ void merge_tile(float* const (&maps)[2], const SS2D& p, const SS2DGeometry& geometry, const Work<L>& work,
                           const Tile<L>& tile, int iteration, Value value) {
  const bool written = work.pair == 1 && maps[0] == maps[1];
  const auto write = [&](bool again) {
    const bool add = again || written;
    float* map = maps[work.pair] + work.batch * p.shape.tokens() * p.shape.channels;
    const int width = geometry.map_vectors ? 4 : 1, per_row = L::kChannels / width;
#pragma unroll 2
    for (int i = work.thread; i < tile.tokens * per_row; i += L::kThreads) {
      const int place = i / per_row, channel = i % per_row * width;
      if (work.first_channel + channel >= p.shape.channels) continue;
      float* to = map + index_at(geometry, work.pair, tile, place) * p.shape.channels + work.first_channel + channel;
      if (geometry.map_vectors) {
        Pack<float, 4> sum = {};
        if (add) sum = load<4>(to);
#pragma unroll
        for (int q = 0; q < 4; ++q) sum.values[q] += value(place, channel + q);
        store(to, sum);
      } else {
        *to = (add ? *to : 0.0f) + value(place, channel);
      }
    }
  };
  const int other = work.tiles - 1 - iteration;  // the iteration in which the other half visits the same tile
  if (iteration != other) {
    write(iteration > other);
    return;
  }
  if (work.group == 0) write(false);
  block_sync();
  if (work.group == 1) write(true);
}

}  // namespace mtlkit::cuda
