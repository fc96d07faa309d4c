// The selective scan over one tile of tokens and one vector of channels: what ss2d and selective_scan share.
//
//   h_t = exp2(dt_t A) h_{t-1} + x_t B_t        x = dt u, A in units of log2(e)
//   y_t = sum_n h_t[n] C_t[n]
//
// A lane is a channel, so the states of all lanes sit in N vectors. B and C are scalars that all channels of a token
// share; where they do not vary with the input (LaneB, LaneC) they are vectors, one per state.
#pragma once

#include "../common/ss2d.h"
#include "tile.h"

namespace mtlkit {
namespace MTLKIT_ISA {

inline constexpr int kTile = kCheckpointTokens;
// States beyond which a scan is refused; the buffers below grow with it.
inline constexpr int kMaxStates = 256;

// What one tile's scan reads. b[t] and c[t] point to the N scalars of token t; lane_b and lane_c to N vectors.
template <typename T>
struct ScanTile {
  int64_t tokens;
  int states;
  Vec<T> dt[kTile], x[kTile];
  const T *b[kTile], *c[kTile];
  const Vec<T> *A, *lane_b, *lane_c;
};

template <typename T>
MTLKIT_INLINE Vec<T> pick(bool lanes, const T* scalars, const Vec<T>* vectors, int n) {
  return lanes ? vectors[n] : splat(scalars[n]);
}

// Advances h over the tile and writes y. N is the compile-time count of states, or 0 for any.
template <typename T, int N, bool LaneB = false, bool LaneC = false>
void scan_forward(const ScanTile<T>& tile, Vec<T>* __restrict h, Vec<T>* __restrict y) {
  const int states = N ? N : tile.states;
  Vec<T> held[N ? N : 1];
  Vec<T>* state = N ? held : h;
  if constexpr (N > 0) {
    for (int n = 0; n < N; ++n) held[n] = h[n];
  }
  for (int64_t t = 0; t < tile.tokens; ++t) {
    const Vec<T> dt = tile.dt[t], x = tile.x[t];
    const T *b = tile.b[t], *c = tile.c[t];
    Vec<T> even{}, odd{};
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      state[n] = state[n] * exp2(dt * tile.A[n]) + x * pick<T>(LaneB, b, tile.lane_b, n);
      (n & 1 ? odd : even) += state[n] * pick<T>(LaneC, c, tile.lane_c, n);
    }
    y[t] = even + odd;
  }
  if constexpr (N > 0) {
    for (int n = 0; n < N; ++n) h[n] = held[n];
  }
}

// States and decays of a tile, rebuilt for the backward pass: h holds h_{-1}, h_0, ..., one more than there are tokens.
template <typename T, int N, bool LaneB = false>
void scan_states(const ScanTile<T>& tile, const Vec<T>* start, Vec<T>* __restrict h, Vec<T>* __restrict decay) {
  const int states = N ? N : tile.states;
  for (int n = 0; n < states; ++n) h[n] = start[n];
  for (int64_t t = 0; t < tile.tokens; ++t) {
    const Vec<T> dt = tile.dt[t], x = tile.x[t];
    const T* b = tile.b[t];
    Vec<T>* now = h + (t + 1) * states;
    const Vec<T>* before = now - states;
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      const Vec<T> a = exp2(dt * tile.A[n]);
      decay[t * states + n] = a;
      now[n] = before[n] * a + x * pick<T>(LaneB, b, tile.lane_b, n);
    }
  }
}

// What the backward scan of one tile leaves behind.
template <typename T>
struct ScanGradients {
  Vec<T>* carry;           // (N) in and out: decay times the gradient of the state, from the tokens behind
  Vec<T>* dA;              // (N) added to; still to be multiplied by ln 2 if wanted for A in units of log2(e)
  Vec<T>* ddt;             // (tokens) the gradient of dt through the decay alone
  Vec<T>* dx;              // (tokens)
  T *db, *dc;              // (tokens, N) sums over the lanes; not written where B or C is per lane
  Vec<T>*dlane_b, *dlane_c;  // (N) added to where B or C is per lane
};

// Sums the lanes of each of `count` vectors into as many scalars. `v` is used up and must reach to a multiple of the
// lane count; `out` likewise.
template <typename T>
MTLKIT_INLINE void sum_all_lanes(Vec<T>* v, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(out + i, sum_lanes<T>(v + i));
}

//   g_t = dy_t C_t + carry          carry <- a_t g_t
//   dC_t = sum_d dy_t h_t           dB_t = sum_d g_t x_t           dx_t = sum_n g_t B_t
//   q = a_t g_t h_{t-1}             ddt_t = ln 2 sum_n q A         dA += q dt_t
template <typename T, int N, bool LaneB = false, bool LaneC = false>
void scan_backward(const ScanTile<T>& tile, const Vec<T>* __restrict dy, const Vec<T>* __restrict h,
                   const Vec<T>* __restrict decay, Vec<T>* __restrict products, const ScanGradients<T>& out) {
  const int states = N ? N : tile.states;
  // Where a token's states fill whole vectors of sums, its products need not outlive it.
  constexpr bool kAtOnce = N > 0 && N % kLanes<T> == 0 && !LaneB && !LaneC;
  Vec<T> held_b[kAtOnce ? N : 1], held_c[kAtOnce ? N : 1];
  for (int64_t t = tile.tokens - 1; t >= 0; --t) {
    Vec<T>* product_b = kAtOnce ? held_b : products + t * states;
    Vec<T>* product_c = kAtOnce ? held_c : products + (kTile + t) * states;
    const Vec<T> dt = tile.dt[t], x = tile.x[t], dy_t = dy[t];
    const T *b = tile.b[t], *c = tile.c[t];
    const Vec<T>* now = h + (t + 1) * states;
    const Vec<T>* before = now - states;
    Vec<T> dx{}, ddt{};
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      const Vec<T> g = out.carry[n] + dy_t * pick<T>(LaneC, c, tile.lane_c, n);
      const Vec<T> dc = dy_t * now[n], db = g * x;
      if constexpr (LaneC) {
        out.dlane_c[n] += dc;
      } else {
        product_c[n] = dc;
      }
      if constexpr (LaneB) {
        out.dlane_b[n] += db;
      } else {
        product_b[n] = db;
      }
      dx += g * pick<T>(LaneB, b, tile.lane_b, n);
      const Vec<T> carry = g * decay[t * states + n];
      const Vec<T> q = carry * before[n];
      ddt += q * tile.A[n];
      out.dA[n] += q * dt;
      out.carry[n] = carry;
    }
    out.dx[t] = dx;
    out.ddt[t] = ddt * kLn2<T>;
    if constexpr (kAtOnce) {
      sum_all_lanes<T>(held_b, N, out.db + t * N);
      sum_all_lanes<T>(held_c, N, out.dc + t * N);
    }
  }
  if constexpr (!kAtOnce && !LaneB) sum_all_lanes<T>(products, tile.tokens * states, out.db);
  if constexpr (!kAtOnce && !LaneC) sum_all_lanes<T>(products + kTile * states, tile.tokens * states, out.dc);
}

// Adds the lanes of v to `channels` elements a stride apart.
template <typename T>
void add_lanes(Vec<T> v, T* out, int64_t stride, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c * stride] += v[c];
}

// Where the checkpoint before token `first` of a sequence lies, from channel d on: one row of channels a state.
template <typename T, typename Shape>
MTLKIT_INLINE Tensor<2> checkpoint(void* checkpoints, int64_t sequence, int64_t first, const Shape& s, int64_t d) {
  const int64_t index = sequence * s.checkpoints() + first / kTile;
  return {static_cast<T*>(checkpoints) + index * s.states * s.channels + d, dtype_of<T>, {1, s.channels}};
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
