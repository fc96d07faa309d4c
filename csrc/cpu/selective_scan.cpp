// 1-D selective scan with mamba-ssm's semantics, for tensors of any strides.
//
// A block is one vector of channels. A work item is a run of blocks of one group of one sequence, which share B and C.
// For each tile, B and C are gathered once; then each block's u, delta and z are gathered, one vector of channels per
// token, scanned, gated and scattered back. A tensor's layout costs two register transpositions and no copy.
#include "cpu/selective_scan.h"

#include "cpu/kernels.h"
#include "cpu/scan.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// The largest number of blocks that are processed together in a tile.
inline constexpr int kRun = 8;

// A block's position: sequence b, group g, channels [d, d + channels).
struct Block {
  int64_t b, g, d, channels;
};

// The blocks of a call: `per_group` blocks in each group of each sequence.
struct Blocks {
  int64_t groups, channels, per_group;
  int lanes;

  Blocks(const SelectiveScanShape& s, int lanes)
      : groups(s.groups), channels(s.channels / s.groups), per_group(ceil_div(channels, lanes)), lanes(lanes) {}

  Block operator()(int64_t sequence, int64_t index) const {
    const int64_t g = sequence % groups;
    return {sequence / groups, g, g * channels + index * lanes, min(lanes, channels - index * lanes)};
  }
};

// A tile of a (B, D, L) tensor.
template <typename T>
void load_tokens(const Tensor<3>& x, const Block& block, int64_t first, int64_t tokens, Vec<T>* tile) {
  const int64_t* s = x.stride;
  load_tile<T>(at(x, block.b * s[0] + block.d * s[1] + first * s[2]), x.dtype, s[1], s[2], block.channels, tokens,
               tile);
}

template <typename T>
void store_tokens(const Tensor<3>& x, const Block& block, int64_t first, int64_t tokens, const Vec<T>* tile) {
  const int64_t* s = x.stride;
  store_tile<T>(at(x, block.b * s[0] + block.d * s[1] + first * s[2]), x.dtype, s[1], s[2], block.channels, tokens,
                tile);
}

// Prefetches the tile from `first` on, if it is within the sequence.
template <int for_write>
Expected<for_write> expected(const Tensor<3>& x, const Block& block, int64_t first, int64_t length) {
  if (!x || first < 0 || first >= length) return {};
  const int64_t* s = x.stride;
  return {at(x, block.b * s[0] + block.d * s[1] + first * s[2]),
          x.dtype,
          s[1],
          s[2],
          block.channels,
          min(kTile, length - first)};
}

// Loads one vector per state from a (D, N) matrix.
template <typename T, int kRank>
void load_states(const Tensor<kRank>& x, const Block& block, int64_t states, Vec<T>* out) {
  load_tile<T>(at(x, block.d * x.stride[0]), x.dtype, x.stride[0], x.stride[1], block.channels, states, out);
}

template <typename T>
Vec<T> load_channels(const Tensor<1>& x, const Block& block) {
  Vec<T> v{};
  if (x) load_tile<T>(at(x, block.d * x.stride[0]), x.dtype, x.stride[0], 0, block.channels, 1, &v);
  return v;
}

// Values that are constant over the tiles of a block. The caller lends the memory: packed, the values of several blocks
// do not compete for the same lines of the first-level cache.
template <typename T>
struct Parameters {
  Block block;
  Vec<T>*A, *lane_b, *lane_c;  // (N); B and C only if they do not vary
  Vec<T> reach, D, bias;

  static int64_t vectors(const SelectiveScanForward& p) {
    return p.shape.states * (1 + (p.variable_B ? 0 : 1) + (p.variable_C ? 0 : 1));
  }

  void place(Vec<T>* memory, const SelectiveScanForward& p) {
    A = memory;
    lane_b = A + p.shape.states;
    lane_c = lane_b + (p.variable_B ? 0 : p.shape.states);
  }

  void load(const SelectiveScanForward& p, const Block& of) {
    block = of;
    const int64_t states = p.shape.states;
    load_states<T>(p.A, block, states, A);
    for (int64_t n = 0; n < states; ++n) A[n] *= kLog2E<T>;
    reach = largest<T>(A, states);
    if (!p.variable_B) load_states<T>(p.B, block, states, lane_b);
    if (!p.variable_C) load_states<T>(p.C, block, states, lane_c);
    D = load_channels<T>(p.D, block);
    bias = load_channels<T>(p.delta_bias, block);
  }
};

// A gathered tile: B and C for all blocks of a group, the rest for one block at a time.
template <typename T>
struct Gathered {
  ScanTile<T> scan;
  Vec<T> u[kTile], z[kTile];
  Vec<T> slope[kTile];  // derivatives of the softplus, for the backward pass
  T rows[2 * kTile * kMaxStates];

  template <int N>
  void gather_group(const SelectiveScanForward& p, const Block& any, int64_t first) {
    scan.tokens = min(kTile, p.shape.tokens - first);
    scan.states = static_cast<int>(p.shape.states);
    scan.rows = rows;
    if (p.variable_B) gather_rows<N>(p.B, any, first, rows);
    if (p.variable_C) gather_rows<N>(p.C, any, first, rows + scan.states);
  }

  template <bool slopes>
  void gather_block(const SelectiveScanForward& p, const Parameters<T>& parameters, int64_t first) {
    scan.A = parameters.A;
    scan.reach = parameters.reach;
    scan.lane_b = parameters.lane_b;
    scan.lane_c = parameters.lane_c;
    load_tokens<T>(p.u, parameters.block, first, scan.tokens, u);
    load_tokens<T>(p.delta, parameters.block, first, scan.tokens, scan.dt);
    for (int64_t t = scan.tokens; t % kAbreast; ++t) {  // repeat the last token past the end
      u[t] = u[t - 1];
      scan.dt[t] = scan.dt[t - 1];
    }
    Vec<T> longest{};
    for (int64_t t = 0; t < scan.tokens; t += kAbreast) {
      Vec<T> dt[kAbreast];
      for (int i = 0; i < kAbreast; ++i) dt[i] = scan.dt[t + i] + parameters.bias;
      if (p.delta_softplus) softplus<kAbreast>(dt, slopes ? slope + t : nullptr);
      for (int i = 0; i < kAbreast; ++i) {
        longest = max(longest, abs(dt[i]));
        scan.dt[t + i] = dt[i];
        scan.x[t + i] = dt[i] * u[t + i];
      }
    }
    scan.longest = longest;
    if (p.z) load_tokens<T>(p.z, parameters.block, first, scan.tokens, z);
  }

 private:
  // Gathers B or C from (B, G, N, L), with the states of each token contiguous.
  template <int N>
  void gather_rows(const Tensor<4>& x, const Block& any, int64_t first, T* out) const {
    const int64_t* s = x.stride;
    const int64_t states = N ? N : scan.states;
    for (int64_t n = 0; n < states; n += kLanes<T>) {
      const int64_t some = min(kLanes<T>, states - n);
      Vec<T> row[kTile];
      load_tile<T>(at(x, any.b * s[0] + any.g * s[1] + n * s[2] + first * s[3]), x.dtype, s[2], s[3], some, scan.tokens,
                   row);
      for (int64_t t = 0; t < scan.tokens; ++t) std::memcpy(out + t * 2 * states + n, &row[t], some * sizeof(T));
    }
  }
};

// Calls f with constants N, LaneB, LaneC; N is 0 unless there is a fast path for this number of states.
template <typename T, typename F>
int with_states(const SelectiveScanForward& p, F f) {
  using std::bool_constant;
  using std::integral_constant;
  const auto any = integral_constant<int, 0>{};
  if constexpr (sizeof(T) == 4) {
    if (p.variable_B && p.variable_C && p.shape.states == 1) {
      return f(integral_constant<int, 1>{}, bool_constant<false>{}, bool_constant<false>{});
    }
    if (p.variable_B && p.variable_C && p.shape.states == 16) {
      return f(integral_constant<int, 16>{}, bool_constant<false>{}, bool_constant<false>{});
    }
  }
  if (p.variable_B && p.variable_C) return f(any, bool_constant<false>{}, bool_constant<false>{});
  if (p.variable_B) return f(any, bool_constant<false>{}, bool_constant<true>{});
  if (p.variable_C) return f(any, bool_constant<true>{}, bool_constant<false>{});
  return f(any, bool_constant<true>{}, bool_constant<true>{});
}

// ---- Forward --------------------------------------------------------------------------------------------------------

template <typename T>
struct ForwardScratch {
  Gathered<T> tile;
  Parameters<T> parameters[kRun];
  Vec<T>* h[kRun];
  Vec<T> y[kTile];

  static int64_t vectors(const SelectiveScanForward& p) { return kRun * (Parameters<T>::vectors(p) + p.shape.states); }

  void place(Vec<T>* memory, const SelectiveScanForward& p) {
    for (int i = 0; i < kRun; ++i) {
      parameters[i].place(memory, p);
      h[i] = memory + Parameters<T>::vectors(p);
      memory = h[i] + p.shape.states;
    }
  }
};

// Processes blocks [from, to) of a group of a sequence, at most kRun.
template <typename T, int N, bool LaneB, bool LaneC>
void forward_run(const SelectiveScanForward& p, const Blocks& blocks, int64_t sequence, int64_t from, int64_t to,
                 ForwardScratch<T>& scratch) {
  const SelectiveScanShape& s = p.shape;
  Gathered<T>& tile = scratch.tile;
  for (int64_t i = 0; i < to - from; ++i) {
    scratch.parameters[i].load(p, blocks(sequence, from + i));
    for (int64_t n = 0; n < s.states; ++n) scratch.h[i][n] = Vec<T>{};
  }
  for (int64_t first = 0; first < s.tokens; first += kTile) {
    tile.template gather_group<N>(p, scratch.parameters[0].block, first);
    for (int64_t i = 0; i < to - from; ++i) {
      const Parameters<T>& parameters = scratch.parameters[i];
      const Block& block = parameters.block;
      if (p.checkpoints) {
        const Tensor<2> c = checkpoint<T>(p.checkpoints, block.b, first, s, block.d);
        store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], block.channels, s.states, scratch.h[i]);
      }
      const bool last_block = i + 1 == to - from;
      const Block& next_block = scratch.parameters[last_block ? 0 : i + 1].block;
      const int64_t next = last_block ? first + kTile : first;
      Expected<0> u = expected<0>(p.u, next_block, next, s.tokens), z = expected<0>(p.z, next_block, next, s.tokens);
      Expected<0> delta = expected<0>(p.delta, next_block, next, s.tokens);
      Expected<1> out = expected<1>(p.out, next_block, next, s.tokens), kept;
      if (p.checkpoints && next < s.tokens) {
        const Tensor<2> c = checkpoint<T>(p.checkpoints, next_block.b, next, s, next_block.d);
        kept = {c.data, c.dtype, 1, s.channels, next_block.channels, s.states};
      }
      if constexpr (N == 1) {  // too few instructions to interleave prefetches with
        for (Expected<0>* x : {&u, &delta, &z}) x->all();
        for (Expected<1>* x : {&out, &kept}) x->all();
      }
      tile.template gather_block<false>(p, parameters, first);
      scan_forward<T, N, LaneB, LaneC>(tile.scan, 0, tile.scan.tokens, scratch.h[i], [&](int64_t t, Vec<T> y) {
        scratch.y[t] = y;
        if constexpr (N != 1) {
          for (Expected<0>* x : {&u, &delta, &z}) (*x)();
          for (Expected<1>* x : {&out, &kept}) (*x)();
        }
      });
      for (int64_t t = 0; t < tile.scan.tokens; ++t) {
        scratch.y[t] += parameters.D * tile.u[t];
        if (p.z) scratch.y[t] *= silu(tile.z[t]);
      }
      store_tokens<T>(p.out, block, first, tile.scan.tokens, scratch.y);
    }
  }
  for (int64_t i = 0; p.last_state && i < to - from; ++i) {
    const Block& block = scratch.parameters[i].block;
    T* out = static_cast<T*>(p.last_state) + (block.b * s.channels + block.d) * s.states;
    store_tile<T>(out, dtype_of<T>, s.states, 1, block.channels, s.states, scratch.h[i]);
  }
}

template <typename T>
int forward(const SelectiveScanForward& p) {
  const Blocks blocks(p.shape, kLanes<T>);
  const int64_t sequences = p.shape.batch * p.shape.groups;
  // The longest runs that still give every thread a few, so that no thread waits long for the last one.
  const int64_t length = max(1, min(kRun, sequences * blocks.per_group / (4 * p.threads)));
  const int64_t runs = ceil_div(blocks.per_group, length), items = sequences * runs;
  const int64_t threads = min(p.threads, items);
  Scratch<ForwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> vectors(threads * ForwardScratch<T>::vectors(p));
  if (!scratch.ok() || !vectors.ok()) return kOutOfMemory;
  return with_states<T>(p, [&](auto n, auto lane_b, auto lane_c) -> int {
    on_threads(threads, [&](int thread, int team) {
      ForwardScratch<T>& mine = scratch.get()[thread];
      mine.place(vectors.get() + thread * ForwardScratch<T>::vectors(p), p);
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const Share run = share(blocks.per_group, runs, item % runs);
        forward_run<T, decltype(n)::value, decltype(lane_b)::value, decltype(lane_c)::value>(p, blocks, item / runs,
                                                                                             run.first, run.last, mine);
      }
    });
    return kOk;
  });
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// Gradients that are sums over sequences: one set per thread, added over the threads in a fixed order.
template <typename T>
struct ParameterGradients {
  T *dA, *dB, *dC, *dD, *ddelta_bias;

  static int64_t size(const SelectiveScanShape& s) { return s.channels * (3 * s.states + 2); }

  ParameterGradients(T* memory, const SelectiveScanShape& s)
      : dA(memory),
        dB(dA + s.channels * s.states),
        dC(dB + s.channels * s.states),
        dD(dC + s.channels * s.states),
        ddelta_bias(dD + s.channels) {}
};

template <typename T>
struct BackwardScratch {
  // The values that a block carries from tile to tile.
  struct Carried {
    Vec<T>*carry, *dA, *dlane_b, *dlane_c;  // (N); the gradients of B and C only if they do not vary
    Vec<T> dD, dbias;
  };
  Gathered<T> tile;
  Parameters<T> parameters[kRun];
  Carried carried[kRun];
  Vec<T> start[kMaxStates];  // of a block with fewer channels than lanes
  Vec<T> dy[kTile], y[kTile], ddt[kTile], dx[kTile], du[kTile], dz[kTile];
  T *db, *dc;  // TokenSums over the blocks of a run

  static int64_t vectors(const SelectiveScanForward& p) {
    return kRun * (2 * Parameters<T>::vectors(p) + p.shape.states);
  }
  static int64_t scalars(const SelectiveScanForward& p) { return 2 * TokenSums<T>::size(p.shape.states); }

  void place(Vec<T>* memory, T* scalars, const SelectiveScanForward& p) {
    const int64_t states = p.shape.states;
    for (int i = 0; i < kRun; ++i) {
      parameters[i].place(memory, p);
      Carried& one = carried[i];
      one.carry = memory + Parameters<T>::vectors(p);
      one.dA = one.carry + states;
      one.dlane_b = one.dA + states;
      one.dlane_c = one.dlane_b + (p.variable_B ? 0 : states);
      memory = one.dA + Parameters<T>::vectors(p);
    }
    db = scalars;
    dc = db + TokenSums<T>::size(states);
  }
};

template <typename T, bool LaneB, bool LaneC>
void begin_block(const SelectiveScanBackward& q, const Block& block, typename BackwardScratch<T>::Carried& carried) {
  const int64_t states = q.forward.shape.states;
  for (int64_t n = 0; n < states; ++n) {
    carried.carry[n] = carried.dA[n] = Vec<T>{};
    if constexpr (LaneB) carried.dlane_b[n] = Vec<T>{};
    if constexpr (LaneC) carried.dlane_c[n] = Vec<T>{};
  }
  carried.dD = carried.dbias = Vec<T>{};
  if (q.dlast_state) {
    const Tensor<3>& last = q.dlast_state;
    load_tile<T>(at(last, block.b * last.stride[0] + block.d * last.stride[1]), last.dtype, last.stride[1],
                 last.stride[2], block.channels, states, carried.carry);
  }
}

// Processes one block of a gathered tile.
template <typename T, int N, bool LaneB, bool LaneC>
void backward_block(const SelectiveScanBackward& q, const Parameters<T>& parameters, int64_t first,
                    typename BackwardScratch<T>::Carried& carried, BackwardScratch<T>& scratch) {
  const SelectiveScanForward& p = q.forward;
  const SelectiveScanShape& s = p.shape;
  const Block& block = parameters.block;
  Gathered<T>& tile = scratch.tile;
  const int64_t tokens = tile.scan.tokens, states = N ? N : s.states;
  const Tensor<2> c = checkpoint<T>(p.checkpoints, block.b, first, s, block.d);
  const States<T> start = states_of<T>(c, block.channels, states, scratch.start);
  tile.template gather_block<true>(p, parameters, first);
  load_tokens<T>(q.dout, block, first, tokens, scratch.dy);
  for (int64_t t = 0; p.z && t < tokens; ++t) {
    const auto gate = silu_and_slope(tile.z[t]);
    scratch.dz[t] = scratch.dy[t] * gate.slope;  // without the factor y, which the scan computes
    scratch.dy[t] *= gate.value;
  }
  const ScanGradients<T> gradients = {
      carried.carry, carried.dA, scratch.ddt,     scratch.dx,      scratch.y,
      scratch.db,    scratch.dc, carried.dlane_b, carried.dlane_c,
  };
  const auto dy = [&](int64_t t) { return scratch.dy[t]; };
  if (p.z) {
    scan_backward<T, N, LaneB, LaneC, true>(tile.scan, dy, start, gradients, [] {});
  } else {
    scan_backward<T, N, LaneB, LaneC>(tile.scan, dy, start, gradients, [] {});
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec<T> dx = scratch.dx[t], u = tile.u[t];
    scratch.du[t] = dx * tile.scan.dt[t] + dy(t) * parameters.D;
    carried.dD += dy(t) * u;
    Vec<T> draw = scratch.ddt[t] * kLn2<T> + dx * u;
    if (p.delta_softplus) draw *= tile.slope[t];
    carried.dbias += draw;
    scratch.ddt[t] = draw;
    if (p.z) scratch.dz[t] *= scratch.y[t] + parameters.D * u;
  }
  store_tokens<T>(q.du, block, first, tokens, scratch.du);
  store_tokens<T>(q.ddelta, block, first, tokens, scratch.ddt);
  if (p.z) store_tokens<T>(q.dz, block, first, tokens, scratch.dz);
}

template <typename T, bool LaneB, bool LaneC>
void end_block(const SelectiveScanShape& s, const Block& block, const typename BackwardScratch<T>::Carried& carried,
               const ParameterGradients<T>& total) {
  add_lanes<T>(carried.dD, total.dD + block.d, 1, block.channels);
  add_lanes<T>(carried.dbias, total.ddelta_bias + block.d, 1, block.channels);
  for (int64_t n = 0; n < s.states; ++n) {
    const int64_t at_n = block.d * s.states + n;
    add_lanes<T>(carried.dA[n], total.dA + at_n, s.states, block.channels);
    if constexpr (LaneB) add_lanes<T>(carried.dlane_b[n], total.dB + at_n, s.states, block.channels);
    if constexpr (LaneC) add_lanes<T>(carried.dlane_c[n], total.dC + at_n, s.states, block.channels);
  }
}

// Processes blocks [from, to) of a group of a sequence, at most kRun, from the last tile to the first.
template <typename T, int N, bool LaneB, bool LaneC>
void backward_run(const SelectiveScanBackward& q, const Blocks& blocks, int64_t sequence, int64_t from, int64_t to,
                  T* db, T* dc, const ParameterGradients<T>& total, BackwardScratch<T>& scratch) {
  const SelectiveScanForward& p = q.forward;
  const SelectiveScanShape& s = p.shape;
  for (int64_t i = 0; i < to - from; ++i) {
    scratch.parameters[i].load(p, blocks(sequence, from + i));
    begin_block<T, LaneB, LaneC>(q, scratch.parameters[i].block, scratch.carried[i]);
  }
  for (int64_t first = (s.checkpoints() - 1) * kTile; first >= 0; first -= kTile) {
    scratch.tile.template gather_group<N>(p, scratch.parameters[0].block, first);
    const int64_t sums = TokenSums<T>::size(s.states);
    if constexpr (!LaneB) std::memset(scratch.db, 0, sums * sizeof(T));
    if constexpr (!LaneC) std::memset(scratch.dc, 0, sums * sizeof(T));
    for (int64_t i = 0; i < to - from; ++i) {
      const bool last_block = i + 1 == to - from;
      const Block& next_block = scratch.parameters[last_block ? 0 : i + 1].block;
      const int64_t next = last_block ? first - kTile : first;
      for (const Tensor<3>* x : {&p.u, &p.delta, &p.z, &q.dout}) expected<0>(*x, next_block, next, s.tokens).all();
      for (const Tensor<3>* x : {&q.du, &q.ddelta, &q.dz}) expected<1>(*x, next_block, next, s.tokens).all();
      backward_block<T, N, LaneB, LaneC>(q, scratch.parameters[i], first, scratch.carried[i], scratch);
    }
    for (int64_t t = 0; t < scratch.tile.scan.tokens; ++t) {
      const int64_t row = (first + t) * s.states;
      if constexpr (!LaneB) TokenSums<T>::template give<false>(scratch.db, t, s.states, db + row);
      if constexpr (!LaneC) TokenSums<T>::template give<false>(scratch.dc, t, s.states, dc + row);
    }
  }
  for (int64_t i = 0; i < to - from; ++i) {
    end_block<T, LaneB, LaneC>(s, scratch.parameters[i].block, scratch.carried[i], total);
  }
}

// A work item is a part of the blocks of one group of one sequence. If a group is split, each part has its own dB and
// dC, which are added afterwards.
template <typename T>
int backward(const SelectiveScanBackward& q) {
  const SelectiveScanForward& p = q.forward;
  const SelectiveScanShape& s = p.shape;
  const Blocks blocks(s, kLanes<T>);
  const int64_t sequences = s.batch * s.groups;
  const int64_t runs = min(blocks.per_group, split(sequences, 64, p.threads)), count = sequences * runs;
  const int64_t threads = min(p.threads, count);
  const int64_t rows_size = sequences * s.tokens * s.states, parameter_size = ParameterGradients<T>::size(s);
  const int64_t vary = (p.variable_B ? 1 : 0) + (p.variable_C ? 1 : 0);

  Scratch<T> parts(runs > 1 ? vary * runs * rows_size : 0);
  Scratch<T> parameters(threads * parameter_size);
  Scratch<BackwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> vectors(threads * BackwardScratch<T>::vectors(p));
  Scratch<T> scalars(threads * BackwardScratch<T>::scalars(p));
  if (!parts.ok() || !parameters.ok() || !scratch.ok() || !vectors.ok() || !scalars.ok()) return kOutOfMemory;
  std::memset(parameters.get(), 0, threads * parameter_size * sizeof(T));
  // The rows that run `run` adds to: the result itself if there is only one run.
  const auto rows_of = [&](bool variable, void* result, int64_t behind, int64_t run, int64_t offset) -> T* {
    if (!variable) return nullptr;
    return (runs > 1 ? parts.get() + (behind * runs + run) * rows_size : static_cast<T*>(result)) + offset;
  };

  with_states<T>(p, [&](auto n, auto lane_b, auto lane_c) -> int {
    on_threads(threads, [&](int thread, int team) {
      const ParameterGradients<T> total(parameters.get() + thread * parameter_size, s);
      BackwardScratch<T>& mine = scratch.get()[thread];
      mine.place(vectors.get() + thread * BackwardScratch<T>::vectors(p),
                 scalars.get() + thread * BackwardScratch<T>::scalars(p), p);
      const Share work = share(count, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const int64_t run = i % runs, sequence = i / runs, offset = sequence * s.tokens * s.states;
        T* db = rows_of(p.variable_B, q.dB, 0, run, offset);
        T* dc = rows_of(p.variable_C, q.dC, p.variable_B ? 1 : 0, run, offset);
        if (db) std::memset(db, 0, s.tokens * s.states * sizeof(T));
        if (dc) std::memset(dc, 0, s.tokens * s.states * sizeof(T));
        const Share part = share(blocks.per_group, runs, run);
        for (int64_t from = part.first; from < part.last; from += kRun) {
          backward_run<T, decltype(n)::value, decltype(lane_b)::value, decltype(lane_c)::value>(
              q, blocks, sequence, from, min(from + kRun, part.last), db, dc, total, mine);
        }
      }
    });
    return kOk;
  });

  on_threads(p.threads, [&](int thread, int team) {
    for (int64_t which = 0; runs > 1 && which < vary; ++which) {
      T* result = static_cast<T*>(which == 0 && p.variable_B ? q.dB : q.dC);
      const T* from = parts.get() + which * runs * rows_size;
      const Share work = share(rows_size, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        T sum = 0;
        for (int64_t run = 0; run < runs; ++run) sum += from[run * rows_size + i];
        result[i] = sum;
      }
    }
    const Share work = share(parameter_size, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      for (int64_t part = 1; part < threads; ++part) parameters.get()[i] += parameters.get()[part * parameter_size + i];
    }
  });
  const ParameterGradients<T> total(parameters.get(), s);
  const auto give = [&](void* to, const T* from, int64_t size) {
    if (to) std::memcpy(to, from, size * sizeof(T));
  };
  give(q.dA, total.dA, s.channels * s.states);
  if (!p.variable_B) give(q.dB, total.dB, s.channels * s.states);
  if (!p.variable_C) give(q.dC, total.dC, s.channels * s.states);
  give(q.dD, total.dD, s.channels);
  give(q.ddelta_bias, total.ddelta_bias, s.channels);
  return kOk;
}

}  // namespace

int selective_scan_forward(const SelectiveScanForward& p) {
  return p.use_double ? forward<double>(p) : forward<float>(p);
}

int selective_scan_backward(const SelectiveScanBackward& p) {
  return p.forward.use_double ? backward<double>(p) : backward<float>(p);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
