// The gradients of the selective scan along any orders of the tokens.
#include "cpu/directional_scan/planes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// Gradients of the parameters that one thread gathers over its items; summed over the threads in their order.
template <typename T>
struct ParameterGradients {
  T *ddt_weight, *ddt_bias, *dA_logs, *dDs;

  static int64_t size(const DirectionalScanShape& s) { return s.directions * s.channels * (s.rank + s.states + 2); }

  ParameterGradients(T* memory, const DirectionalScanShape& s)
      : ddt_weight(memory),
        ddt_bias(ddt_weight + s.directions * s.channels * s.rank),
        dA_logs(ddt_bias + s.directions * s.channels),
        dDs(dA_logs + s.directions * s.channels * s.states) {}
};

template <typename T>
struct BackwardScratch {
  Parameters<T> parameters;
  Gathered<T> tile;
  ScanTile<T> part;  // of a tile in which the state starts again
  Vec<T> start[kMaxStates], carry[kMaxStates], dA[kMaxStates];
  Vec<T> dy[kTile], ddt[kTile], dx[kTile];
  // Sized by the states and the rank of the call.
  Vec<T>*partial, *ddt_weight;
  T *db, *dc, *part_db, *part_dc;

  static int64_t vectors(const DirectionalScanShape& s) { return 2 * kTile * s.states + 2 * s.rank; }
  static int64_t scalars(const DirectionalScanShape& s) { return 4 * kTile * s.states; }

  void point_into(Vec<T>* v, T* scalar, const DirectionalScanShape& s) {
    partial = v;
    parameters.dt_weight = partial + 2 * kTile * s.states;
    ddt_weight = parameters.dt_weight + s.rank;
    db = scalar;
    dc = db + kTile * s.states;
    part_db = dc + kTile * s.states;
    part_dc = part_db + kTile * s.states;
  }
};

// Takes back a tile in which the state starts again at zero: its parts from one start to the next, as if each were a
// tile. Neither the state before a start nor its gradient crosses it.
template <typename T, int N>
void backward_parts(const uint8_t* starts, const ScanGradients<T>& gradients, BackwardScratch<T>& scratch) {
  const ScanTile<T>& whole = scratch.tile.scan;
  ScanTile<T>& part = scratch.part;
  const int64_t states = whole.states;
  ScanGradients<T> out = gradients;
  out.db = scratch.part_db;
  out.dc = scratch.part_dc;
  part.states = whole.states;
  part.A = whole.A;
  part.longest = whole.longest;
  part.reach = whole.reach;
  part.to_b = whole.to_b;
  part.to_c = whole.to_c;
  for (int64_t stop = whole.tokens, first = stop - 1; stop > 0; --first) {
    if (first > 0 && !starts[first]) continue;
    const int64_t tokens = part.tokens = stop - first;
    std::memcpy(part.dt, whole.dt + first, tokens * sizeof part.dt[0]);
    std::memcpy(part.x, whole.x + first, tokens * sizeof part.x[0]);
    std::memcpy(part.row, whole.row + first, tokens * sizeof part.row[0]);
    if (starts[first]) {
      Vec<T> zeros[N ? N : kMaxStates] = {};
      out.ddt = gradients.ddt + first;
      out.dx = gradients.dx + first;
      scan_backward<T, N>(part, scratch.dy + first, zeros, out);
      for (int64_t n = 0; n < states; ++n) out.carry[n] = Vec<T>{};
    } else {
      out.ddt = gradients.ddt;
      out.dx = gradients.dx;
      scan_backward<T, N>(part, scratch.dy, scratch.start, out);
    }
    // scan_backward writes whole vectors, past the end of a part too.
    std::memcpy(gradients.db + first * states, out.db, tokens * states * sizeof(T));
    std::memcpy(gradients.dc + first * states, out.dc, tokens * states * sizeof(T));
    stop = first;
  }
}

// One direction of one block of channels, from the last tile to the first. Adds to the packed du and to the rows of
// dx_dbl, which no other thread touches.
template <typename T, int N>
void backward_direction(const DirectionalScanBackward& q, int64_t b, int64_t k, int64_t d, int64_t channels,
                        const Vec<T>* u_plane, const Vec<T>* dy_plane, Vec<T>* du_plane, T* dx_dbl,
                        const ParameterGradients<T>& total, BackwardScratch<T>& scratch) {
  const DirectionalScanForward& p = q.forward;
  const DirectionalScanShape& s = p.shape;
  const int64_t rank = s.rank, states = N ? N : s.states, pitch = s.pitch();
  Parameters<T>& parameters = scratch.parameters;
  parameters.load(p, k, d, channels);
  const T* x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * s.directions + k) * s.row();
  const int32_t* const order = order_of(p, b, k);
  const uint8_t* const starts = starts_of(p, b, k);
  load_state<T>(q.dlast_state, s, b, k, d, channels, scratch.carry);
  for (int64_t n = 0; n < states; ++n) scratch.dA[n] = Vec<T>{};
  for (int64_t r = 0; r < rank; ++r) scratch.ddt_weight[r] = Vec<T>{};
  Vec<T> dbias{}, dD{};
  ScanGradients<T> gradients{};
  gradients.carry = scratch.carry;
  gradients.dA = scratch.dA;
  gradients.ddt = scratch.ddt;
  gradients.dx = scratch.dx;
  gradients.db = scratch.db;
  gradients.dc = scratch.dc;
  gradients.partial = scratch.partial;

  for (int64_t first = (s.checkpoints() - 1) * kTile; first >= 0; first -= kTile) {
    const Tensor<2> c = checkpoint<T>(p.checkpoints, b * s.directions + k, first, s, d);
    load_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], channels, states, scratch.start);
    Gathered<T>& tile = scratch.tile;
    tile.gather(p, order + first, min(kTile, s.steps - first), parameters, x_dbl, packed_plane<const T>(u_plane));
    const int64_t tokens = tile.scan.tokens;
    for (int64_t t = 0; t < tokens; ++t) scratch.dy[t] = dy_plane[tile.token[t]];
    const int64_t next = max(first - kTile, 0);
    const T* const next_start = static_cast<T*>(checkpoint<T>(p.checkpoints, b * s.directions + k, next, s, d).data);
    for (int64_t n = 0; n < states; ++n) __builtin_prefetch(next_start + n * s.channels);
    if (starts && std::memchr(starts + first, 1, tokens)) {
      backward_parts<T, N>(starts + first, gradients, scratch);
    } else {
      scan_backward<T, N>(tile.scan, scratch.dy, scratch.start, gradients);
    }

    Vec<T> draw[kTile] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t later = order[next + t];  // of the tile whose turn comes next
      prefetch_row<0, N>(x_dbl + later * pitch, s.row());
      prefetch_row<1, N>(dx_dbl + later * pitch, s.row());
      __builtin_prefetch(u_plane + later);
      __builtin_prefetch(dy_plane + later);
      const Vec<T> dy = scratch.dy[t], dx = scratch.dx[t], u = tile.u[t];
      du_plane[tile.token[t]] += dx * tile.scan.dt[t] + dy * parameters.D;
      dD += dy * u;
      draw[t] = (scratch.ddt[t] * kLn2<T> + dx * u) * softplus_slope(tile.raw[t]);
      dbias += draw[t];
      T* row = dx_dbl + tile.token[t] * pitch;
      for (int64_t n = 0; n < states; ++n) {
        row[rank + n] += scratch.db[t * states + n];
        row[rank + states + n] += scratch.dc[t * states + n];
      }
    }
    for (int64_t r = 0; r < rank; ++r) {
      Vec<T> sum[4] = {};  // the draw of tokens past the end is 0
      for (int64_t t = 0; t < tokens; t += 4) {
        for (int64_t i = 0; i < 4; ++i) sum[i] += draw[t + i] * tile.scan.row[t + i][r];
      }
      scratch.ddt_weight[r] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    // d(time step before its projection): with tokens in the lanes, the sum over channels is a sum of vectors.
    for (int64_t t0 = 0; t0 < tokens; t0 += kLanes<T>) {
      transpose<T>(draw + t0);
      const int64_t some = min(kLanes<T>, tokens - t0);
      for (int64_t r = 0; r < rank; ++r) {
        Vec<T> even{}, odd{};
        for (int c = 0; c < kLanes<T>; c += 2) {
          even += draw[t0 + c] * parameters.dt_weight[r][c];
          odd += draw[t0 + c + 1] * parameters.dt_weight[r][c + 1];
        }
        T sum[kLanes<T>];
        store(sum, even + odd);
        for (int64_t i = 0; i < some; ++i) dx_dbl[tile.token[t0 + i] * pitch + r] += sum[i];
      }
    }
  }

  if (q.dinitial_state) store_state<T>(q.dinitial_state, s, b, k, d, channels, scratch.carry);
  const int64_t row = k * s.channels + d;
  for (int64_t r = 0; r < rank; ++r)
    add_lanes<T>(scratch.ddt_weight[r], total.ddt_weight + row * rank + r, rank, channels);
  add_lanes<T>(dbias, total.ddt_bias + row, 1, channels);
  add_lanes<T>(dD, total.dDs + row, 1, channels);
  // A = -exp(A_logs), so dA_logs = dA A; parameters.A carries a factor log2(e).
  for (int64_t n = 0; n < states; ++n) {
    add_lanes<T>(scratch.dA[n] * parameters.A[n] * kLn2<T>, total.dA_logs + row * states + n, states, channels);
  }
}

// A work item is (sample, group of directions, run of channel blocks). Directions split before channels, because their
// rows of dx_dbl are disjoint, while runs of channels each need a dx_dbl of their own, summed afterwards.
template <typename T, int N>
int backward(const DirectionalScanBackward& q) {
  const DirectionalScanForward& p = q.forward;
  const DirectionalScanShape& s = p.shape;
  const int64_t tokens = s.tokens(), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t groups = split(s.batch, s.directions, p.threads);
  const int64_t runs = min(blocks, split(s.batch * groups, 64, p.threads));
  const int64_t items = s.batch * groups * runs;
  const int threads = static_cast<int>(min(p.threads, items));
  const bool parted = groups > 1 && !p.own_inputs;  // each group keeps its own du until all are there
  const int64_t plane_size = s.batch * blocks * tokens, x_size = s.batch * tokens * s.pitch();
  const int64_t parameter_size = ParameterGradients<T>::size(s);

  Scratch<Vec<T>> du_parts(parted ? groups * plane_size : 0);
  Scratch<T> dx_parts(runs > 1 ? runs * x_size : 0);
  Scratch<Vec<T>> planes(threads * 3 * tokens);
  Scratch<T> parameters(threads * parameter_size);
  Scratch<BackwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> vectors(threads * BackwardScratch<T>::vectors(s));
  Scratch<T> scalars(threads * BackwardScratch<T>::scalars(s));
  if (!du_parts.ok() || !dx_parts.ok() || !planes.ok() || !parameters.ok() || !scratch.ok() || !vectors.ok() ||
      !scalars.ok()) {
    return kOutOfMemory;
  }
  T* const dx = static_cast<T*>(q.dx_dbl);
  std::memset(parameters.get(), 0, threads * parameter_size * sizeof(T));

  on_threads(threads, [&](int thread, int team) {
    BackwardScratch<T>& mine = scratch.get()[thread];
    mine.point_into(vectors.get() + thread * BackwardScratch<T>::vectors(s),
                    scalars.get() + thread * BackwardScratch<T>::scalars(s), s);
    const ParameterGradients<T> total(parameters.get() + thread * parameter_size, s);
    Vec<T>* u_plane = planes.get() + thread * 3 * tokens;
    Vec<T>* dy_plane = u_plane + tokens;
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t run = item % runs, group = item / runs % groups, b = item / runs / groups;
      T* my_dx = (runs > 1 ? dx_parts.get() + run * x_size : dx) + b * tokens * s.pitch();
      const Share directions = share(s.directions, groups, group);
      const int64_t rows = (directions.last - directions.first) * s.row();
      for (int64_t l = 0; l < tokens; ++l) {
        std::memset(my_dx + (l * s.directions + directions.first) * s.row(), 0, rows * sizeof(T));
      }
      const Share my_blocks = share(blocks, runs, run);
      for (int64_t block = my_blocks.first; block < my_blocks.last; ++block) {
        const int64_t d = block * kLanes<T>, channels = min(kLanes<T>, s.channels - d);
        Vec<T>* du_plane =
            parted ? du_parts.get() + group * plane_size + (b * blocks + block) * tokens : dy_plane + tokens;
        for (int64_t k = directions.first; k < directions.last; ++k) {
          const bool first = k == directions.first, last = k + 1 == directions.last;
          if (first || p.own_inputs) {
            load_plane<T>(images_of(p.u, k), b, d, channels, s.height, s.width, u_plane);
            std::memset(du_plane, 0, tokens * sizeof(Vec<T>));
          }
          if (first || !p.merge) {
            load_plane<T>(images_of(q.dy, k), b, d, channels, s.height, s.width, dy_plane);
          }
          backward_direction<T, N>(q, b, k, d, channels, u_plane, dy_plane, du_plane, my_dx + k * s.row(), total, mine);
          if (!parted && (last || p.own_inputs)) {
            store_plane<T>(images_of(q.du, k), b, d, channels, s.height, s.width, du_plane);
          }
        }
      }
    }
  });

  on_threads(p.threads, [&](int thread, int team) {
    if (parted) {
      const Share work = share(s.batch * blocks, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const int64_t b = item / blocks, d = item % blocks * kLanes<T>;
        Vec<T>* sum = du_parts.get() + item * tokens;
        for (int64_t group = 1; group < groups; ++group) {
          for (int64_t l = 0; l < tokens; ++l) sum[l] += sum[group * plane_size + l];
        }
        store_plane<T>(images_of(q.du, 0), b, d, min(kLanes<T>, s.channels - d), s.height, s.width, sum);
      }
    }
    if (runs > 1) {
      const Share work = share(x_size, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        T sum = 0;
        for (int64_t run = 0; run < runs; ++run) sum += dx_parts.get()[run * x_size + i];
        dx[i] = sum;
      }
    }
    const Share work = share(parameter_size, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      for (int64_t part = 1; part < threads; ++part) parameters.get()[i] += parameters.get()[part * parameter_size + i];
    }
  });
  const ParameterGradients<T> total(parameters.get(), s);
  const int64_t rows = s.directions * s.channels;
  std::memcpy(q.ddt_weight, total.ddt_weight, rows * s.rank * sizeof(T));
  std::memcpy(q.ddt_bias, total.ddt_bias, rows * sizeof(T));
  std::memcpy(q.dA_logs, total.dA_logs, rows * s.states * sizeof(T));
  std::memcpy(q.dDs, total.dDs, rows * sizeof(T));
  return kOk;
}

}  // namespace

int directional_scan_backward(const DirectionalScanBackward& p) {
  if (!within_range(p.forward)) return kTokenOutOfRange;
  if (p.forward.use_double) return backward<double, 0>(p);
  switch (p.forward.shape.states) {
    case 1:
      return backward<float, 1>(p);
    case 16:
      return backward<float, 16>(p);
    default:
      return backward<float, 0>(p);
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
