// 1-D selective scan with mamba-ssm's semantics, for tensors of any strides.
//
// A work item is one vector of channels of one group of one sequence. Tiles of kTile tokens are gathered with tokens
// outside and channels in the lanes, scanned, gated and scattered back, so that the layout of the tensors costs two
// transpositions of registers and no copy.
#include "kernels.h"
#include "scan.h"
#include "threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// Where a work item lies: sequence b, group g, channels [d, d + channels).
struct Item {
  int64_t b, g, d, channels;
};

struct Items {
  int64_t groups, per_group, blocks, count;

  explicit Items(const SelectiveScanShape& s, int lanes)
      : groups(s.groups),
        per_group(s.channels / s.groups),
        blocks(ceil_div(per_group, lanes)),
        count(s.batch * s.groups * blocks) {}

  Item operator()(int64_t b, int64_t g, int64_t block, int lanes) const {
    return {b, g, g * per_group + block * lanes, min(lanes, per_group - block * lanes)};
  }
};

// A tile of a (B, D, L) tensor.
template <typename T>
void load_tokens(const Tensor<3>& x, const Item& item, int64_t first, int64_t tokens, Vec<T>* tile) {
  const int64_t* s = x.stride;
  load_tile<T>(at(x, item.b * s[0] + item.d * s[1] + first * s[2]), x.dtype, s[1], s[2], item.channels, tokens, tile);
}

template <typename T>
void store_tokens(const Tensor<3>& x, const Item& item, int64_t first, int64_t tokens, const Vec<T>* tile) {
  const int64_t* s = x.stride;
  store_tile<T>(at(x, item.b * s[0] + item.d * s[1] + first * s[2]), x.dtype, s[1], s[2], item.channels, tokens, tile);
}

// A vector per state from a (D, N) matrix.
template <typename T, int kRank>
void load_states(const Tensor<kRank>& x, const Item& item, int64_t states, Vec<T>* out) {
  load_tile<T>(at(x, item.d * x.stride[0]), x.dtype, x.stride[0], x.stride[1], item.channels, states, out);
}

template <typename T>
Vec<T> load_channels(const Tensor<1>& x, const Item& item) {
  Vec<T> v{};
  if (x) load_tile<T>(at(x, item.d * x.stride[0]), x.dtype, x.stride[0], 0, item.channels, 1, &v);
  return v;
}

// One tile of one work item, gathered.
template <typename T>
struct Gathered {
  ScanTile<T> scan;
  Vec<T> A[kMaxStates], lane_b[kMaxStates], lane_c[kMaxStates];
  Vec<T> D, bias;
  Vec<T> u[kTile], raw[kTile], z[kTile];
  T rows[2 * kTile * kMaxStates];  // B and C of each token, side by side, padded to whole vectors

  // What stays the same over the tiles of an item.
  void load_parameters(const SelectiveScanForward& p, const Item& item) {
    const int64_t states = p.shape.states;
    load_states<T>(p.A, item, states, A);
    for (int64_t n = 0; n < states; ++n) A[n] *= kLog2E<T>;
    if (!p.variable_B) load_states<T>(p.B, item, states, lane_b);
    if (!p.variable_C) load_states<T>(p.C, item, states, lane_c);
    D = load_channels<T>(p.D, item);
    bias = load_channels<T>(p.delta_bias, item);
    scan.A = A;
    scan.lane_b = lane_b;
    scan.lane_c = lane_c;
    scan.states = static_cast<int>(states);
    scan.to_b = 0;
    scan.to_c = ceil_div(states, kLanes<T>) * kLanes<T>;
    for (int64_t t = 0; t < kTile; ++t) scan.row[t] = rows + t * 2 * scan.to_c;
  }

  void gather(const SelectiveScanForward& p, const Item& item, int64_t first) {
    const int64_t tokens = min(kTile, p.shape.tokens - first);
    scan.tokens = tokens;
    load_tokens<T>(p.u, item, first, tokens, u);
    load_tokens<T>(p.delta, item, first, tokens, raw);
    for (int64_t t = 0; t < tokens; ++t) {
      raw[t] += bias;
      scan.dt[t] = p.delta_softplus ? softplus(raw[t]) : raw[t];
      scan.x[t] = scan.dt[t] * u[t];
    }
    if (p.variable_B) gather_rows(p.B, item, first, rows);
    if (p.variable_C) gather_rows(p.C, item, first, rows + scan.to_c);
    if (p.z) load_tokens<T>(p.z, item, first, tokens, z);
  }

 private:
  // The states of each token side by side, from (B, G, N, L).
  void gather_rows(const Tensor<4>& x, const Item& item, int64_t first, T* out) const {
    const int64_t states = scan.states;
    const int64_t* s = x.stride;
    for (int64_t n = 0; n < states; n += kLanes<T>) {
      Vec<T> block[kTile];
      load_tile<T>(at(x, item.b * s[0] + item.g * s[1] + n * s[2] + first * s[3]), x.dtype, s[2], s[3],
                   min(kLanes<T>, states - n), scan.tokens, block);
      for (int64_t t = 0; t < scan.tokens; ++t) store(out + t * 2 * scan.to_c + n, block[t]);
    }
  }
};

// Calls f with the states known at compile time where there is a fast path: its arguments are constants N, LaneB,
// LaneC.
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
  Vec<T> h[kMaxStates], y[kTile];
};

template <typename T, int N, bool LaneB, bool LaneC>
void forward_item(const SelectiveScanForward& p, const Item& item, ForwardScratch<T>& scratch) {
  const SelectiveScanShape& s = p.shape;
  Gathered<T>& tile = scratch.tile;
  tile.load_parameters(p, item);
  for (int64_t n = 0; n < s.states; ++n) scratch.h[n] = Vec<T>{};
  for (int64_t first = 0; first < s.tokens; first += kTile) {
    if (p.checkpoints) {
      const Tensor<2> c = checkpoint<T>(p.checkpoints, item.b, first, s, item.d);
      store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], item.channels, s.states, scratch.h);
    }
    tile.gather(p, item, first);
    scan_forward<T, N, LaneB, LaneC>(tile.scan, scratch.h, scratch.y);
    for (int64_t t = 0; t < tile.scan.tokens; ++t) {
      scratch.y[t] += tile.D * tile.u[t];
      if (p.z) scratch.y[t] *= tile.z[t] * sigmoid(tile.z[t]);
    }
    store_tokens<T>(p.out, item, first, tile.scan.tokens, scratch.y);
  }
  if (p.last_state) {
    T* out = static_cast<T*>(p.last_state) + (item.b * s.channels + item.d) * s.states;
    store_tile<T>(out, dtype_of<T>, s.states, 1, item.channels, s.states, scratch.h);
  }
}

template <typename T>
int forward(const SelectiveScanForward& p) {
  const Items items(p.shape, kLanes<T>);
  const int64_t threads = min(p.threads, items.count);
  Scratch<ForwardScratch<T>> scratch(threads);
  if (!scratch.ok()) return kOutOfMemory;
  return with_states<T>(p, [&](auto n, auto lane_b, auto lane_c) -> int {
    on_threads(threads, [&](int thread, int team) {
      const Share work = share(items.count, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item =
            items(i / items.blocks / items.groups, i / items.blocks % items.groups, i % items.blocks, kLanes<T>);
        forward_item<T, decltype(n)::value, decltype(lane_b)::value, decltype(lane_c)::value>(p, item,
                                                                                              scratch.get()[thread]);
      }
    });
    return kOk;
  });
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// Gradients that sum over sequences: one set a thread, summed over the threads in their order.
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
  Gathered<T> tile;
  Vec<T> start[kMaxStates], carry[kMaxStates], dA[kMaxStates], dlane_b[kMaxStates], dlane_c[kMaxStates];
  Vec<T> dy[kTile], ddt[kTile], dx[kTile], du[kTile];
  Vec<T> y[kTile], partial[2 * kTile * kMaxStates];
  T db[kTile * kMaxStates], dc[kTile * kMaxStates];
};

// One work item, from the last tile to the first. db and dc are the (L, N) rows of its group, added to.
template <typename T, int N, bool LaneB, bool LaneC>
void backward_item(const SelectiveScanBackward& q, const Item& item, T* db, T* dc, const ParameterGradients<T>& total,
                   BackwardScratch<T>& scratch) {
  const SelectiveScanForward& p = q.forward;
  const SelectiveScanShape& s = p.shape;
  const int64_t states = s.states;
  Gathered<T>& tile = scratch.tile;
  tile.load_parameters(p, item);
  for (int64_t n = 0; n < states; ++n) {
    scratch.carry[n] = scratch.dA[n] = scratch.dlane_b[n] = scratch.dlane_c[n] = Vec<T>{};
  }
  if (q.dlast_state) {
    const Tensor<3>& last = q.dlast_state;
    load_tile<T>(at(last, item.b * last.stride[0] + item.d * last.stride[1]), last.dtype, last.stride[1],
                 last.stride[2], item.channels, states, scratch.carry);
  }
  Vec<T> dD{}, dbias{};
  const ScanGradients<T> gradients = {
      scratch.carry, scratch.dA, scratch.ddt,     scratch.dx,      p.z ? scratch.y : nullptr,
      scratch.db,    scratch.dc, scratch.dlane_b, scratch.dlane_c, scratch.partial,
  };

  for (int64_t first = (s.checkpoints() - 1) * kTile; first >= 0; first -= kTile) {
    const Tensor<2> c = checkpoint<T>(p.checkpoints, item.b, first, s, item.d);
    load_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], item.channels, states, scratch.start);
    tile.gather(p, item, first);
    const int64_t tokens = tile.scan.tokens;
    load_tokens<T>(q.dout, item, first, tokens, scratch.dy);
    Vec<T> dz[kTile];  // but for the factor y, which the scan brings
    for (int64_t t = 0; p.z && t < tokens; ++t) {
      const Vec<T> z = tile.z[t], gate = sigmoid(z);
      dz[t] = scratch.dy[t] * gate * (T(1) + z * (T(1) - gate));
      scratch.dy[t] *= z * gate;
    }
    scan_backward<T, N, LaneB, LaneC>(tile.scan, scratch.dy, scratch.start, gradients);
    if (p.z) {
      for (int64_t t = 0; t < tokens; ++t) dz[t] *= scratch.y[t] + tile.D * tile.u[t];
      store_tokens<T>(q.dz, item, first, tokens, dz);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const Vec<T> dx = scratch.dx[t], dy = scratch.dy[t], u = tile.u[t];
      scratch.du[t] = dx * tile.scan.dt[t] + dy * tile.D;
      dD += dy * u;
      Vec<T> draw = scratch.ddt[t] + dx * u;
      if (p.delta_softplus) draw *= sigmoid(tile.raw[t]);
      dbias += draw;
      scratch.ddt[t] = draw;
    }
    store_tokens<T>(q.du, item, first, tokens, scratch.du);
    store_tokens<T>(q.ddelta, item, first, tokens, scratch.ddt);
    for (int64_t i = 0; i < tokens * states; ++i) {
      if constexpr (!LaneB) db[first * states + i] += scratch.db[i];
      if constexpr (!LaneC) dc[first * states + i] += scratch.dc[i];
    }
  }

  add_lanes<T>(dD, total.dD + item.d, 1, item.channels);
  add_lanes<T>(dbias, total.ddelta_bias + item.d, 1, item.channels);
  for (int64_t n = 0; n < states; ++n) {
    const int64_t at_n = item.d * states + n;
    add_lanes<T>(scratch.dA[n], total.dA + at_n, states, item.channels);
    if constexpr (LaneB) add_lanes<T>(scratch.dlane_b[n], total.dB + at_n, states, item.channels);
    if constexpr (LaneC) add_lanes<T>(scratch.dlane_c[n], total.dC + at_n, states, item.channels);
  }
}

// A work item is (sequence, group, run of channel blocks); where a group's channels are split into runs, each has a dB
// and a dC of its own, summed afterwards.
template <typename T>
int backward(const SelectiveScanBackward& q) {
  const SelectiveScanForward& p = q.forward;
  const SelectiveScanShape& s = p.shape;
  const Items items(s, kLanes<T>);
  const int64_t sequences = s.batch * s.groups;
  const int64_t runs = min(items.blocks, split(sequences, 64, p.threads)), count = sequences * runs;
  const int64_t threads = min(p.threads, count);
  const int64_t rows_size = sequences * s.tokens * s.states, parameter_size = ParameterGradients<T>::size(s);
  const int64_t vary = (p.variable_B ? 1 : 0) + (p.variable_C ? 1 : 0);

  Scratch<T> parts(runs > 1 ? vary * runs * rows_size : 0);
  Scratch<T> parameters(threads * parameter_size);
  Scratch<BackwardScratch<T>> scratch(threads);
  if (!parts.ok() || !parameters.ok() || !scratch.ok()) return kOutOfMemory;
  std::memset(parameters.get(), 0, threads * parameter_size * sizeof(T));
  // The rows that run `run` adds to: the result itself where there is one run only.
  const auto rows_of = [&](bool variable, void* result, int64_t behind, int64_t run, int64_t offset) -> T* {
    if (!variable) return nullptr;
    return (runs > 1 ? parts.get() + (behind * runs + run) * rows_size : static_cast<T*>(result)) + offset;
  };

  with_states<T>(p, [&](auto n, auto lane_b, auto lane_c) -> int {
    on_threads(threads, [&](int thread, int team) {
      const ParameterGradients<T> total(parameters.get() + thread * parameter_size, s);
      const Share work = share(count, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const int64_t run = i % runs, sequence = i / runs, offset = sequence * s.tokens * s.states;
        T* db = rows_of(p.variable_B, q.dB, 0, run, offset);
        T* dc = rows_of(p.variable_C, q.dC, p.variable_B ? 1 : 0, run, offset);
        if (db) std::memset(db, 0, s.tokens * s.states * sizeof(T));
        if (dc) std::memset(dc, 0, s.tokens * s.states * sizeof(T));
        const Share blocks = share(items.blocks, runs, run);
        for (int64_t block = blocks.first; block < blocks.last; ++block) {
          const Item item = items(sequence / s.groups, sequence % s.groups, block, kLanes<T>);
          backward_item<T, decltype(n)::value, decltype(lane_b)::value, decltype(lane_c)::value>(q, item, db, dc, total,
                                                                                                 scratch.get()[thread]);
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
