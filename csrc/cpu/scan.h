// The selective scan over one tile of tokens and one vector of channels, shared by ss2d and selective_scan.
//
//   h_t = exp2(dt_t A) h_{t-1} + x_t B_t        x = dt u, A in units of log2(e)
//   y_t = sum_n h_t[n] C_t[n]
//
// A lane is a channel, so the states are N vectors. B and C are scalars that all channels of a token share; if they do
// not vary with the input (LaneB, LaneC), they are vectors over the channels, one per state.
#pragma once

#include "common/ss2d.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {

inline constexpr int kTile = kCheckpointTokens;
// The largest supported number of states; it sets the sizes of the buffers below.
inline constexpr int kMaxStates = 256;

// Tokens whose time steps are computed together, so that their long dependency chains hide each other's latency.
inline constexpr int kAbreast = kVectorBytes == 64 ? 8 : 4;

// The inputs of one tile's scan. `rows` lists B, then C, of each token, N scalars each.
template <typename T>
struct ScanTile {
  int64_t tokens;
  int states;
  Vec<T> dt[kTile], x[kTile];
  const T* rows;
  const Vec<T>*A, *lane_b, *lane_c;
  Vec<T> longest, reach;  // the largest |dt| of the tile, and the largest |A|

  // N is the number of states, or 0 if it is only known at run time.
  template <int N>
  const T* b(int64_t t) const {
    return rows + 2 * t * (N ? N : states);
  }
  template <int N>
  const T* c(int64_t t) const {
    return b<N>(t) + (N ? N : states);
  }
  // Whether exp2_near is valid for all decays; both versions of exp2 keep NaN.
  bool near() const { return all_of<T>(longest * reach <= static_cast<T>(kNearExponent)); }
};

// The largest |A| over the states, for each channel of a vector.
template <typename T>
Vec<T> largest(const Vec<T>* A, int64_t states) {
  Vec<T> found{};
  for (int64_t n = 0; n < states; ++n) found = max(found, abs(A[n]));
  return found;
}

template <typename T>
MTLKIT_INLINE Vec<T> pick(bool lanes, const T* scalars, const Vec<T>* vectors, int n) {
  return lanes ? vectors[n] : splat(scalars[n]);
}

template <typename T, int N, bool LaneB, bool LaneC, bool near, typename Give>
MTLKIT_INLINE void advance(const ScanTile<T>& tile, int64_t from, int64_t to, Vec<T>* __restrict h, const Give& give) {
  const int states = N ? N : tile.states;
  Vec<T> held[N ? N : 1];
  Vec<T>* state = N ? held : h;
  if constexpr (N > 0) {
    for (int n = 0; n < N; ++n) held[n] = h[n];
  }
  for (int64_t t = from; t < to; ++t) {
    const Vec<T> dt = tile.dt[t], x = tile.x[t];
    const T *b = tile.template b<N>(t), *c = tile.template c<N>(t);
    Vec<T> even{}, odd{};
#pragma GCC unroll 16
    for (int n = 0; n < states; ++n) {
      state[n] = state[n] * exp2_if<near>(dt * tile.A[n]) + x * pick<T>(LaneB, b, tile.lane_b, n);
      (n & 1 ? odd : even) += state[n] * pick<T>(LaneC, c, tile.lane_c, n);
    }
    give(t, even + odd);
  }
  if constexpr (N > 0) {
    for (int n = 0; n < N; ++n) h[n] = held[n];
  }
}

// Advances h over the tokens [from, to) of the tile and calls give(t, y) for each token. N is the number of states, or
// 0 if it is only known at run time.
template <typename T, int N, bool LaneB = false, bool LaneC = false, typename Give>
MTLKIT_INLINE void scan_forward(const ScanTile<T>& tile, int64_t from, int64_t to, Vec<T>* __restrict h,
                                const Give& give) {
  if (tile.near()) {
    advance<T, N, LaneB, LaneC, true>(tile, from, to, h, give);
  } else {
    advance<T, N, LaneB, LaneC, false>(tile, from, to, h, give);
  }
}

// States of one vector of channels each, `step` elements apart.
template <typename T>
struct States {
  const T* data;
  int64_t step;

  Vec<T> operator[](int64_t n) const { return load(data + n * step); }
};

// The results of the backward scan of one tile.
template <typename T>
struct ScanGradients {
  Vec<T>* carry;             // (N) in and out: decay times the gradient of the state, from the following token
  Vec<T>* dA;                // (N) added to; the gradient of A itself, not of A in units of log2(e)
  Vec<T>* ddt;               // (tokens) the gradient of dt, only through the decay, in units of ln(2)
  Vec<T>* dx;                // (tokens)
  Vec<T>* y;                 // (tokens) the output of the scan, if wanted
  T *db, *dc;                // TokenSums, added to; unused if B or C is per lane
  Vec<T>*dlane_b, *dlane_c;  // (N) added to if B or C is per lane
};

// The backward scan processes states in groups: their h and decays over a complete tile then fit in the first-level
// cache, and the carries in registers. The sums of a group's four states are folded into one vector before they are
// stored.
inline constexpr int kGroup = 4;

// Sums over channels for each token and state of a tile, by groups of states: (N / G, kTokens, G). Several tokens are
// added at once, so up to that many tokens after the last receive zeros.
template <typename T>
struct TokenSums {
  static constexpr int64_t kTokens = kTile + kLanes<T>;

  static constexpr int64_t size(int64_t states) { return states * kTokens; }
  // States per group. A vector of two lanes cannot hold four sums.
  static constexpr int group(int64_t states) { return kLanes<T> >= kGroup && states % kGroup == 0 ? kGroup : 1; }

  // Sets row to the sums of token t, or adds them.
  template <bool sets>
  static MTLKIT_INLINE void give(const T* sums, int64_t t, int64_t states, T* row) {
    if (group(states) == kGroup) {
      for (int64_t n = 0; n < states; n += kGroup) give<sets, kGroup>(sums + n * kTokens + t * kGroup, row + n);
    } else {
      for (int64_t n = 0; n < states; ++n) give<sets, 1>(sums + n * kTokens + t, row + n);
    }
  }

 private:
  template <bool sets, int G>
  static MTLKIT_INLINE void give(const T* sums, T* row) {
    typedef T Sums __attribute__((vector_size(G * sizeof(T))));
    Sums found, before{};
    std::memcpy(&found, sums, sizeof found);
    if constexpr (!sets) std::memcpy(&before, row, sizeof before);
    found = sets ? found : before + found;
    std::memcpy(row, &found, sizeof found);
  }
};

// Folds the vectors of G states into one: with G = 4, each run of four lanes of the result holds one partial sum per
// state.
template <typename T, int G>
MTLKIT_INLINE Vec<T> fold(const Vec<T>* v) {
  if constexpr (G == 1) {
    return v[0];
  } else {
    const auto pair = [](Vec<T> a, Vec<T> b) {
      return pick_lanes<T, Pick::kEven, 1>(a, b) + pick_lanes<T, Pick::kOdd, 1>(a, b);
    };
    return pair(pair(v[0], v[1]), pair(v[2], v[3]));
  }
}

// Completes the sums of folded vectors, one per token: the result holds the sums of as many tokens as fit in a vector,
// beginning with v[0]. Overwrites v.
template <typename T, int G>
MTLKIT_INLINE Vec<T> sum_folded(Vec<T>* v) {
  if constexpr (G == 1) {
    return sum_lanes<T>(v);
  } else if constexpr (kLanes<T> == G) {
    return v[0];
  } else if constexpr (kLanes<T> == 2 * G) {
    return pick_lanes<T, Pick::kLow, G>(v[0], v[1]) + pick_lanes<T, Pick::kHigh, G>(v[0], v[1]);
  } else {
    const auto pair = [](Vec<T> a, Vec<T> b) {
      return pick_lanes<T, Pick::kEven, G>(a, b) + pick_lanes<T, Pick::kOdd, G>(a, b);
    };
    return pair(pair(v[0], v[1]), pair(v[2], v[3]));
  }
}

// The backward scan of the states [first, first + G), which it first recomputes from `start`:
//
//   g_t = dy_t C_t + carry          carry <- a_t g_t
//   dC_t = sum_d dy_t h_t           dB_t = sum_d g_t x_t           dx_t = sum_n g_t B_t
//   q = a_t g_t h_{t-1}             ddt_t = sum_n q A              dA += q dt_t
//
// Adds to dx, ddt and y, or sets them if these are the only states. Calls meanwhile() once per kLanes / G
// tokens.
template <typename T, int N, int G, bool LaneB, bool LaneC, bool wants_y, typename Dy, typename Meanwhile>
void backward_group(const ScanTile<T>& tile, const Dy& dy, const States<T>& start, int first, bool near,
                    const ScanGradients<T>& out, Meanwhile& meanwhile) {
  constexpr int kTogether = kLanes<T> / G;  // tokens whose sums over the lanes are completed together
  constexpr int kUnrolled = 4;              // the exit of a short loop is predicted, that of a long one is not
  Vec<T> h[kTile + 1][G], decay[kTile][G];
  Vec<T> A[G], lane_b[G], lane_c[G], last[G], carry[G], dA[G], dlane_b[G], dlane_c[G];
#pragma GCC unroll 4
  for (int j = 0; j < G; ++j) {
    const int n = first + j;
    A[j] = tile.A[n];
    if constexpr (LaneB) lane_b[j] = tile.lane_b[n];
    if constexpr (LaneC) lane_c[j] = tile.lane_c[n];
    h[0][j] = last[j] = start[n];
    carry[j] = out.carry[n];
    dA[j] = dlane_b[j] = dlane_c[j] = Vec<T>{};
  }
  const auto rebuild = [&](auto near) {
    const auto advance = [&](int64_t t) __attribute__((always_inline)) {
      const T* b = tile.template b<N>(t) + first;
      asm("" : "+r"(b));  // else the compiler adds the offsets again for each state
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j) {
        decay[t][j] = exp2_if<decltype(near)::value>(tile.dt[t] * A[j]);
        last[j] = last[j] * decay[t][j] + tile.x[t] * (LaneB ? lane_b[j] : splat(b[j]));
        h[t + 1][j] = last[j];
      }
    };
    const int64_t whole = tile.tokens / kUnrolled * kUnrolled;
    for (int64_t t = 0; t < whole; t += kUnrolled) {
#pragma GCC unroll 4
      for (int i = 0; i < kUnrolled; ++i) advance(t + i);
    }
    for (int64_t t = whole; t < tile.tokens; ++t) advance(t);
  };
  near ? rebuild(std::true_type{}) : rebuild(std::false_type{});

  Vec<T> some_b[kTogether] = {}, some_c[kTogether] = {};
  const auto retreat = [&](int64_t t, int64_t i) __attribute__((always_inline)) {
    const T *b = tile.template b<N>(t) + first, *c = tile.template c<N>(t) + first;
    asm("" : "+r"(b), "+r"(c));  // as above
    const Vec<T> dt = tile.dt[t], x = tile.x[t], dy_t = dy(t);
    Vec<T> dx{}, ddt{}, y{}, db[G], dc[G];
#pragma GCC unroll 4
    for (int j = 0; j < G; ++j) {
      const Vec<T> c_j = LaneC ? lane_c[j] : splat(c[j]);
      const Vec<T> g = dy_t * c_j + carry[j];
      dc[j] = dy_t * h[t + 1][j];
      db[j] = g * x;
      dx += g * (LaneB ? lane_b[j] : splat(b[j]));
      carry[j] = g * decay[t][j];
      const Vec<T> q = carry[j] * h[t][j];
      ddt += q * A[j];
      dA[j] += q * dt;
      if constexpr (wants_y) y += h[t + 1][j] * c_j;
      if constexpr (LaneB) dlane_b[j] += db[j];
      if constexpr (LaneC) dlane_c[j] += dc[j];
    }
    const auto give = [](Vec<T>& sum, Vec<T> part) { sum = N == G ? part : sum + part; };
    give(out.dx[t], dx);
    give(out.ddt[t], ddt);
    if constexpr (wants_y) give(out.y[t], y);
    if constexpr (!LaneB) some_b[i] = fold<T, G>(db);
    if constexpr (!LaneC) some_c[i] = fold<T, G>(dc);
  };
  const auto complete = [&](Vec<T>* some, T* sums)
                            __attribute__((always_inline)) { store(sums, load(sums) + sum_folded<T, G>(some)); };
  T *sum_b = nullptr, *sum_c = nullptr;
  if constexpr (!LaneB) sum_b = out.db + first * TokenSums<T>::kTokens;
  if constexpr (!LaneC) sum_c = out.dc + first * TokenSums<T>::kTokens;
  for (int64_t left = tile.tokens; left > 0;) {
    const int64_t t0 = (left - 1) / kTogether * kTogether;
    meanwhile();
    if (left - t0 == kTogether) {
#pragma GCC unroll 4
      for (int i = kTogether - 1; i >= 0; --i) retreat(t0 + i, i);
    } else {
      for (int64_t t = left - 1; t >= t0; --t) retreat(t, t - t0);
    }
    left = t0;
    if constexpr (!LaneB) complete(some_b, sum_b + t0 * G);
    if constexpr (!LaneC) complete(some_c, sum_c + t0 * G);
  }
#pragma GCC unroll 4
  for (int j = 0; j < G; ++j) {
    const int n = first + j;
    out.carry[n] = carry[j];
    out.dA[n] += dA[j];
    if constexpr (LaneB) out.dlane_b[n] += dlane_b[j];
    if constexpr (LaneC) out.dlane_c[n] += dlane_c[j];
  }
}

// How often scan_backward calls meanwhile().
template <typename T>
constexpr int64_t backward_calls(int64_t tokens, int64_t states) {
  const int64_t group = TokenSums<T>::group(states);
  return ceil_div(tokens, kLanes<T> / group) * (states / group);
}

// The backward scan of one tile, given the states at its start; dy(t) is the gradient of y. Calls meanwhile() now and
// then, for prefetches.
template <typename T, int N, bool LaneB = false, bool LaneC = false, bool wants_y = false, typename Dy,
          typename Meanwhile>
void scan_backward(const ScanTile<T>& tile, const Dy& dy, const States<T>& start, const ScanGradients<T>& out,
                   Meanwhile&& meanwhile) {
  const int states = N ? N : tile.states;
  const bool near = tile.near();
  for (int64_t t = 0; N != 1 && t < tile.tokens; ++t) {
    out.dx[t] = out.ddt[t] = Vec<T>{};
    if constexpr (wants_y) out.y[t] = Vec<T>{};
  }
  if constexpr (kLanes<T> >= kGroup) {
    if (TokenSums<T>::group(states) == kGroup) {
      for (int n = 0; n < states; n += kGroup) {
        backward_group<T, N, kGroup, LaneB, LaneC, wants_y>(tile, dy, start, n, near, out, meanwhile);
      }
      return;
    }
  }
  for (int n = 0; n < states; ++n) {
    backward_group<T, N, 1, LaneB, LaneC, wants_y>(tile, dy, start, n, near, out, meanwhile);
  }
}

// Adds the lanes of v to `channels` elements that are `stride` apart.
template <typename T>
void add_lanes(Vec<T> v, T* out, int64_t stride, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c * stride] += v[c];
}

// The address of the checkpoint before token `first` of a sequence, from channel d on: one row of channels per state.
template <typename T, typename Shape>
MTLKIT_INLINE Tensor<2> checkpoint(void* checkpoints, int64_t sequence, int64_t first, const Shape& s, int64_t d) {
  const int64_t index = sequence * s.checkpoints() + first / kTile;
  return {static_cast<T*>(checkpoints) + index * s.states * s.channels + d, dtype_of<T>, {1, s.channels}};
}

// The states of a checkpoint: in place if it has a whole vector of channels, else padded with zeros, in `memory`.
template <typename T>
States<T> states_of(const Tensor<2>& checkpoint, int64_t channels, int64_t states, Vec<T>* memory) {
  if (channels == kLanes<T>) return {static_cast<const T*>(checkpoint.data), checkpoint.stride[1]};
  load_tile<T>(checkpoint.data, checkpoint.dtype, 1, checkpoint.stride[1], channels, states, memory);
  return {reinterpret_cast<const T*>(memory), kLanes<T>};
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
