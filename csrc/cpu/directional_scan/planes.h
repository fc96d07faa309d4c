// Shared by both passes of the directional scan: the order and the parameters of a direction, blocks of channels, and
// the gathering of a tile.
#pragma once

#include "cpu/directional_scan/directional_scan.h"
#include "cpu/scan.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// The tokens of a direction of a sample, one per step.
MTLKIT_INLINE const int32_t* order_of(const DirectionalScanForward& p, int64_t b, int64_t k) {
  return p.order + ((p.own_orders ? b * p.shape.directions : 0) + k) * p.shape.steps;
}

MTLKIT_INLINE const uint8_t* starts_of(const DirectionalScanForward& p, int64_t b, int64_t k) {
  return p.starts ? p.starts + (b * p.shape.directions + k) * p.shape.steps : nullptr;
}

// Whether every token of the order exists: in compiled graphs nothing else checks this.
MTLKIT_INLINE bool within_range(const DirectionalScanForward& p) {
  const int64_t count = (p.own_orders ? p.shape.batch : 1) * p.shape.directions * p.shape.steps;
  uint32_t largest = 0;  // negative numbers become large
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t token = static_cast<uint32_t>(p.order[i]);
    largest = token > largest ? token : largest;
  }
  return largest < p.shape.tokens();
}

// Prefetches the cache lines of a row; for_write is 1 if it will be written. The rows of a direction are too irregular
// for the hardware prefetcher.
template <int for_write, typename T>
MTLKIT_INLINE void prefetch(const T* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(row + i, for_write);
}

// Prefetches a row of x_dbl. If N is known, it needs no loop, but may fetch one line too many.
template <int for_write, int N, typename T>
MTLKIT_INLINE void prefetch_row(const T* row, int64_t count) {
  if constexpr (N * sizeof(T) == 64) {
    for (int i = 0; i < 4; ++i) __builtin_prefetch(row + i * N, for_write);
  } else {
    prefetch<for_write>(row, count);
  }
}

// A run of blocks of channels, which go through a tile together; each block is a vector of channels.
template <typename T>
struct Blocks {
  int64_t channels;  // of the whole map
  int64_t d, count;  // the first channel, and the number of blocks

  int64_t first(int64_t i) const { return d + i * kLanes<T>; }
  int64_t size(int64_t i) const { return min(kLanes<T>, channels - first(i)); }
};

// The parameters of one direction and one block of channels, as vectors over the channels. The caller lends the memory:
// packed, the parameters of several blocks do not compete for the same lines of the first-level cache.
template <typename T>
struct Parameters {
  Vec<T>*A, *dt_weight;  // (N): -exp(A_logs) log2(e); (R)
  Vec<T> reach, bias, D;

  static int64_t vectors(const DirectionalScanShape& s) { return s.states + s.rank; }

  void place(Vec<T>* memory, const DirectionalScanShape& s) {
    A = memory;
    dt_weight = memory + s.states;
  }

  void load(const DirectionalScanForward& p, int64_t k, int64_t d, int64_t channels) {
    const DirectionalScanShape& s = p.shape;
    const int64_t row = k * s.channels + d;
    load_tile<T>(at(p.A_logs, row * p.A_logs.stride[0]), p.A_logs.dtype, p.A_logs.stride[0], p.A_logs.stride[1],
                 channels, s.states, A);
    for (int64_t n = 0; n < s.states; ++n) A[n] = exp2(A[n] * kLog2E<T>) * -kLog2E<T>;
    reach = largest<T>(A, s.states);
    load_tile<T>(at(p.Ds, row * p.Ds.stride[0]), p.Ds.dtype, p.Ds.stride[0], 0, channels, 1, &D);
    load_tile<T>(at(p.dt_bias, k * p.dt_bias.stride[0] + d * p.dt_bias.stride[1]), p.dt_bias.dtype, p.dt_bias.stride[1],
                 0, channels, 1, &bias);
    load_tile<T>(at(p.dt_weight, k * p.dt_weight.stride[0] + d * p.dt_weight.stride[1]), p.dt_weight.dtype,
                 p.dt_weight.stride[1], p.dt_weight.stride[2], channels, s.rank, dt_weight);
  }
};

// A block of channels of a sample, token by token: packed, or in place in a channels-last tensor.
template <typename T>
struct Plane {
  T* data;
  int64_t step;  // elements from token to token

  T* at(int64_t token) const { return data + token * step; }
};

// Whether the blocks of channels can be read and written in place: complete, contiguous, in the type of computation.
template <typename T>
bool in_place(const Tensor<5>& image, const DirectionalScanShape& s) {
  const int64_t* stride = image.stride;
  const bool flat = s.height == 1 || stride[3] == s.width * stride[4];
  return image.dtype == dtype_of<T> && s.channels % kLanes<T> == 0 && stride[2] == 1 && flat;
}

template <typename T>
Plane<T> block_of(const Tensor<5>& image, int64_t b, int64_t k, int64_t d) {
  return {static_cast<T*>(at(image, b * image.stride[0] + k * image.stride[1] + d)), image.stride[4]};
}

template <typename T, typename V>
Plane<T> packed_plane(V* vectors) {
  return {reinterpret_cast<T*>(vectors), static_cast<int64_t>(sizeof(V) / sizeof(T))};
}

// A map of all tokens, block by block: packed, or in place in a channels-last tensor.
template <typename T>
struct Planes {
  T* data;
  int64_t step, block;  // elements from token to token, and from block to block

  Plane<T> operator[](int64_t i) const { return {data + i * block, step}; }
};

template <typename T>
Planes<T> in_place_planes(const Tensor<5>& image, int64_t b, int64_t k, int64_t d) {
  const Plane<T> first = block_of<T>(image, b, k, d);
  return {first.data, first.step, kLanes<T>};
}

// Planes that are `apart` vectors apart.
template <typename T, typename V>
Planes<T> packed_planes(V* vectors, int64_t apart) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  return {reinterpret_cast<T*>(vectors), lanes, lanes * apart};
}

// The vectors from plane to plane, an odd number: otherwise a column of all planes could share a few sets of a cache.
inline int64_t plane_size(int64_t tokens) { return tokens | 1; }

template <typename T>
void clear(Plane<T> plane, int64_t tokens) {
  for (int64_t l = 0; l < tokens; ++l) store(plane.at(l), Vec<T>{});
}

// Where the tokens of a tile are: offsets of their elements in the maps, and of their rows in x_dbl. All blocks of a
// run share them. The last token is repeated up to a multiple of kAbreast.
struct Offsets {
  int64_t u[kTile], y[kTile], du[kTile], row[kTile];

  // Finds `tokens` tokens, at most kTile, that `order` lists. The steps are those of maps from token to token; y is the
  // output or its gradient.
  void find(const int32_t* order, int64_t tokens, int64_t pitch, int64_t u_step, int64_t y_step, int64_t du_step = 0) {
    for (int64_t t = 0; t < round_up(tokens, kAbreast); ++t) {
      const int64_t token = order[min(t, tokens - 1)];
      u[t] = token * u_step;
      y[t] = token * y_step;
      du[t] = token * du_step;
      row[t] = token * pitch;
    }
  }
};

// A gathered tile of one direction: the rows of x_dbl, shared by all blocks of channels, and time step and scan input
// of one block. Rows are copied, because in x_dbl they are far apart, and each begins with the numbers of the time
// step.
template <typename T>
struct Gathered {
  ScanTile<T> scan;
  Offsets at;
  Vec<T> slope[kTile];  // the derivatives of the softplus, for the backward pass
  T *rows, *low;        // scan.rows; (R, kTile): the time steps before their projection

  static int64_t scalars(const DirectionalScanShape& s) { return kTile * s.row(); }

  void place(T* memory, const DirectionalScanShape& s) {
    rows = memory;
    low = rows + kTile * 2 * s.states;
  }

  // Gathers the rows of `tokens` tokens, which `at` has found. N is the number of states, or 0.
  template <int N>
  void gather_rows(const DirectionalScanShape& s, int64_t tokens, const T* x_dbl) {
    const int64_t states = N ? N : s.states;
    scan.tokens = tokens;
    scan.states = static_cast<int>(states);
    scan.rows = rows;
    for (int64_t t = 0; t < round_up(tokens, kAbreast); ++t) {
      const T* const row = x_dbl + at.row[t];
      for (int64_t r = 0; r < s.rank; ++r) low[r * kTile + t] = row[r];
      std::memcpy(rows + t * 2 * states, row + s.rank, 2 * states * sizeof(T));
    }
  }

  template <bool backward>
  void gather_block(int64_t rank, const Parameters<T>& parameters, const T* u_map) {
    scan.A = parameters.A;
    scan.reach = parameters.reach;
    Vec<T> longest{};
    for (int64_t t = 0; t < scan.tokens; t += kAbreast) {
      Vec<T> sum[kAbreast];
      for (int64_t i = 0; i < kAbreast; ++i) sum[i] = parameters.bias;
      for (int64_t r = 0; r < rank; ++r) {
        const Vec<T> weight = parameters.dt_weight[r];
        const T* const of = low + r * kTile + t;
        for (int64_t i = 0; i < kAbreast; ++i) sum[i] += weight * of[i];
      }
      softplus<kAbreast>(sum, backward ? slope + t : nullptr);
      for (int64_t i = 0; i < kAbreast; ++i) {
        longest = max(longest, sum[i]);
        scan.dt[t + i] = sum[i];
        scan.x[t + i] = sum[i] * load(u_map + at.u[t + i]);
      }
    }
    scan.longest = longest;
  }
};

// The images of direction k.
MTLKIT_INLINE Tensor<4> images_of(const Tensor<5>& all, int64_t k) {
  const int64_t* s = all.stride;
  return {at(all, k * s[1]), all.dtype, {s[0], s[2], s[3], s[4]}};
}

// Packs the blocks of a sample into planes that are `apart` vectors apart.
template <typename T>
void load_planes(const Tensor<4>& images, int64_t b, const DirectionalScanShape& s, const Blocks<T>& blocks,
                 Vec<T>* planes, int64_t apart) {
  for (int64_t i = 0; i < blocks.count; ++i) {
    load_plane<T>(images, b, blocks.first(i), blocks.size(i), s.height, s.width, planes + i * apart);
  }
}

template <typename T>
void store_planes(const Tensor<4>& images, int64_t b, const DirectionalScanShape& s, const Blocks<T>& blocks,
                  const Vec<T>* planes, int64_t apart) {
  for (int64_t i = 0; i < blocks.count; ++i) {
    store_plane<T>(images, b, blocks.first(i), blocks.size(i), s.height, s.width, planes + i * apart);
  }
}

// Stores states to a contiguous (B, K, D, N) tensor in the type of computation, from channel d on.
template <typename T>
void store_state(void* states, const DirectionalScanShape& s, int64_t b, int64_t k, int64_t d, int64_t channels,
                 const Vec<T>* h) {
  T* const data = static_cast<T*>(states) + ((b * s.directions + k) * s.channels + d) * s.states;
  store_tile<T>(data, dtype_of<T>, s.states, 1, channels, s.states, h);
}

// Loads states of any strides and dtype, from channel d on; zeros if absent.
template <typename T>
void load_state(const Tensor<4>& states, const DirectionalScanShape& s, int64_t b, int64_t k, int64_t d,
                int64_t channels, Vec<T>* h) {
  if (!states) {
    for (int64_t n = 0; n < s.states; ++n) h[n] = Vec<T>{};
    return;
  }
  const int64_t* stride = states.stride;
  load_tile<T>(at(states, b * stride[0] + k * stride[1] + d * stride[2]), states.dtype, stride[2], stride[3], channels,
               s.states, h);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
