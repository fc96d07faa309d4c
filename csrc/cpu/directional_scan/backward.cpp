// The gradients of the selective scan along any orders of the tokens.
#include "cpu/directional_scan/planes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// The largest number of blocks of channels that go through a tile together: they share its rows, and their
// contributions to the gradient of a row are summed before they are written. One block alone fills the first-level
// cache.
inline constexpr int kRun = 16;

// Gradients of the parameters, summed by one thread over its items; added over the threads in a fixed order.
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
  // The values that a block carries from tile to tile.
  struct Carried {
    Parameters<T> parameters;
    Vec<T>*carry, *dA, *ddt_weight;  // (N), (N), (R)
    Vec<T> dbias, dD;
  };
  Carried carried[kRun];
  Gathered<T> tile;
  Offsets before;            // the tokens of the tile before it, which is processed next
  ScanTile<T> part;          // part of a tile in which the state is reset
  Vec<T> start[kMaxStates];  // of a block with fewer channels than lanes
  Vec<T> ddt[kTile], dx[kTile];
  T *db, *dc;  // TokenSums over the blocks of a run; the call sets their size
  T* row_dt;   // sums over the blocks of a run, (R, tokens)

  static int64_t vectors(const DirectionalScanShape& s) {
    return kRun * (Parameters<T>::vectors(s) + 2 * s.states + s.rank);
  }
  static int64_t scalars(const DirectionalScanShape& s) {
    return round_up(Gathered<T>::scalars(s) + 2 * TokenSums<T>::size(s.states) + kTile * s.rank, kLanes<T>);
  }

  void place(Vec<T>* v, T* scalar, const DirectionalScanShape& s) {
    for (Carried& one : carried) {
      one.parameters.place(v, s);
      one.carry = v + Parameters<T>::vectors(s);
      one.dA = one.carry + s.states;
      one.ddt_weight = one.dA + s.states;
      v = one.ddt_weight + s.rank;
    }
    tile.place(scalar, s);
    db = scalar + Gathered<T>::scalars(s);
    dc = db + TokenSums<T>::size(s.states);
    row_dt = dc + TokenSums<T>::size(s.states);
  }
};

// The backward scan of a tile in which the state is reset to zero: processes the parts from one start to the next as
// separate tiles. Neither the state nor its gradient crosses a start.
template <typename T, int N, typename Meanwhile>
void backward_parts(const uint8_t* starts, const T* dy_map, const States<T>& start, const ScanGradients<T>& gradients,
                    BackwardScratch<T>& scratch, Meanwhile& meanwhile) {
  const ScanTile<T>& whole = scratch.tile.scan;
  ScanTile<T>& part = scratch.part;
  const int64_t states = whole.states;
  ScanGradients<T> out = gradients;
  part.states = whole.states;
  part.A = whole.A;
  part.longest = whole.longest;
  part.reach = whole.reach;
  for (int64_t stop = whole.tokens, first = stop - 1; stop > 0; --first) {
    if (first > 0 && !starts[first]) continue;
    const int64_t tokens = part.tokens = stop - first;
    std::memcpy(part.dt, whole.dt + first, tokens * sizeof part.dt[0]);
    std::memcpy(part.x, whole.x + first, tokens * sizeof part.x[0]);
    part.rows = whole.template b<N>(first);
    const int64_t to_sums = first * TokenSums<T>::group(states);
    out.db = gradients.db + to_sums;
    out.dc = gradients.dc + to_sums;
    out.ddt = gradients.ddt + first;
    out.dx = gradients.dx + first;
    const auto dy = [&](int64_t t) { return load(dy_map + scratch.tile.at.y[first + t]); };
    if (starts[first]) {
      const Vec<T> zeros{};
      scan_backward<T, N>(part, dy, States<T>{reinterpret_cast<const T*>(&zeros), 0}, out, meanwhile);
      for (int64_t n = 0; n < states; ++n) out.carry[n] = Vec<T>{};
    } else {
      scan_backward<T, N>(part, dy, start, out, meanwhile);
    }
    stop = first;
  }
}

// A run of blocks with its maps, and whether to set their gradients rather than add to them.
template <typename T>
struct Run : Blocks<T> {
  Planes<const T> u, dy;
  Planes<T> du;
  T* dx_dbl;
  bool sets_du, sets_rows;
};

// Prefetches the memory of the next block, or of the first block of the next tile, `share` tokens at a time: more lines
// would wait for each other.
template <typename T, int N>
struct Ahead {
  const T *u, *dy;
  T* du;
  const Offsets* to;
  int64_t share, tokens;
  const T* x_dbl;  // null if the rows are those of this tile
  T* dx_dbl;
  int64_t row;
  int64_t t = 0;

  MTLKIT_INLINE void operator()() {
    for (const int64_t stop = min(t + share, tokens); t < stop; ++t) {
      __builtin_prefetch(u + to->u[t]);
      __builtin_prefetch(dy + to->y[t]);
      __builtin_prefetch(du + to->du[t], 1);
      if (x_dbl) {
        prefetch_row<0, N>(x_dbl + to->row[t], row);
        prefetch_row<1, N>(dx_dbl + to->row[t], row);
      }
    }
  }
};

// Computes the gradients of the inputs and of the time step of one block of a tile, after its scan.
template <typename T>
void finish_block(const DirectionalScanShape& s, const T* u_map, const T* dy_map, T* du, bool sets, bool first,
                  BackwardScratch<T>& scratch, typename BackwardScratch<T>::Carried& carried) {
  const Gathered<T>& tile = scratch.tile;
  const Parameters<T>& parameters = carried.parameters;
  const int64_t tokens = tile.scan.tokens, whole = round_up(tokens, max(kLanes<T>, 4));
  Vec<T>* const draw = scratch.ddt;  // overwritten by the gradient of the time step before softplus
  Vec<T> dbias = carried.dbias, dD = carried.dD;
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec<T> dx = scratch.dx[t], u = load(u_map + tile.at.u[t]), dy = load(dy_map + tile.at.y[t]);
    T* const to = du + tile.at.du[t];
    const Vec<T> found = dx * tile.scan.dt[t] + dy * parameters.D;
    store(to, sets ? found : load(to) + found);
    dD += dy * u;
    draw[t] = (draw[t] * kLn2<T> + dx * u) * tile.slope[t];
    dbias += draw[t];
  }
  carried.dbias = dbias;
  carried.dD = dD;
  for (int64_t t = tokens; t < whole; ++t) draw[t] = Vec<T>{};
  for (int64_t r = 0; r < s.rank; ++r) {
    Vec<T> sum[4] = {};
    for (int64_t t = 0; t < tokens; t += 4) {
      for (int64_t i = 0; i < 4; ++i) sum[i] += draw[t + i] * tile.low[r * kTile + t + i];
    }
    carried.ddt_weight[r] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  // The gradient of the time step before its projection: with tokens in the lanes, the sum over channels is a sum of
  // vectors.
  for (int64_t t = 0; t < tokens; t += kLanes<T>) {
    transpose<T>(draw + t);
    for (int64_t r = 0; r < s.rank; ++r) {
      Vec<T> even{}, odd{};
      for (int c = 0; c < kLanes<T>; c += 2) {
        even += draw[t + c] * parameters.dt_weight[r][c];
        odd += draw[t + c + 1] * parameters.dt_weight[r][c + 1];
      }
      T* const sum = scratch.row_dt + r * kTile + t;
      store(sum, first ? even + odd : load(sum) + (even + odd));
    }
  }
}

// Processes one direction of a run of blocks, from the last tile to the first. No other thread writes its rows of
// dx_dbl.
template <typename T, int N>
void backward_direction(const DirectionalScanBackward& q, int64_t b, int64_t k, const Run<T>& run,
                        const ParameterGradients<T>& total, BackwardScratch<T>& scratch) {
  const DirectionalScanForward& p = q.forward;
  const DirectionalScanShape& s = p.shape;
  const int64_t rank = s.rank, states = N ? N : s.states, pitch = s.pitch();
  const T* const x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * s.directions + k) * s.row();
  T* const dx_dbl = run.dx_dbl + k * s.row();
  const int32_t* const order = order_of(p, b, k);
  const uint8_t* const starts = starts_of(p, b, k);
  for (int64_t i = 0; i < run.count; ++i) {
    auto& carried = scratch.carried[i];
    carried.parameters.load(p, k, run.first(i), run.size(i));
    load_state<T>(q.dlast_state, s, b, k, run.first(i), run.size(i), carried.carry);
    for (int64_t n = 0; n < states; ++n) carried.dA[n] = Vec<T>{};
    for (int64_t r = 0; r < rank; ++r) carried.ddt_weight[r] = Vec<T>{};
    carried.dbias = carried.dD = Vec<T>{};
  }
  ScanGradients<T> gradients{};
  gradients.ddt = scratch.ddt;
  gradients.dx = scratch.dx;
  gradients.db = scratch.db;
  gradients.dc = scratch.dc;

  const auto find = [&](int64_t first, int64_t tokens, Offsets& at) {
    at.find(order + first, tokens, pitch, run.u.step, run.dy.step, run.du.step);
  };
  for (int64_t first = (s.checkpoints() - 1) * kTile; first >= 0; first -= kTile) {
    const int64_t tokens = min(kTile, s.steps - first), before = max(first - kTile, 0);
    Gathered<T>& tile = scratch.tile;
    find(first, tokens, tile.at);
    tile.template gather_rows<N>(s, tokens, x_dbl);
    std::memset(scratch.db, 0, 2 * TokenSums<T>::size(states) * sizeof(T));  // and dc
    for (int64_t i = 0; i < run.count; ++i) {
      auto& carried = scratch.carried[i];
      const bool last = i + 1 == run.count;
      const Tensor<2> c = checkpoint<T>(p.checkpoints, b * s.directions + k, first, s, run.first(i));
      const States<T> start = states_of<T>(c, run.size(i), states, scratch.start);
      const T *const u = run.u[i].data, *const dy = run.dy[i].data;
      tile.template gather_block<true>(rank, carried.parameters, u);

      if (last) find(before, tokens, scratch.before);
      const int64_t next = last ? 0 : i + 1, next_first = last ? before : first;
      const T* const next_start =
          static_cast<T*>(checkpoint<T>(p.checkpoints, b * s.directions + k, next_first, s, run.first(next)).data);
      for (int64_t n = 0; n < states; ++n) __builtin_prefetch(next_start + n * s.channels);
      Ahead<T, N> ahead{run.u[next].data,
                        run.dy[next].data,
                        run.du[next].data,
                        last ? &scratch.before : &tile.at,
                        ceil_div(kTile, backward_calls<T>(tokens, states)),
                        tokens,
                        last ? x_dbl : nullptr,
                        dx_dbl,
                        s.row()};

      gradients.carry = carried.carry;
      gradients.dA = carried.dA;
      if (starts && std::memchr(starts + first, 1, tokens)) {
        backward_parts<T, N>(starts + first, dy, start, gradients, scratch, ahead);
      } else {
        const auto dy_of = [&](int64_t t) { return load(dy + tile.at.y[t]); };
        scan_backward<T, N>(tile.scan, dy_of, start, gradients, ahead);
      }
      finish_block<T>(s, u, dy, run.du[i].data, run.sets_du, i == 0, scratch, carried);
    }
    const auto write_rows = [&](auto sets) {
      constexpr bool kSets = decltype(sets)::value;
      for (int64_t t = 0; t < tokens; ++t) {
        T* const row = dx_dbl + tile.at.row[t];
        for (int64_t r = 0; r < rank; ++r) {
          const T sum = scratch.row_dt[r * kTile + t];
          row[r] = kSets ? sum : row[r] + sum;
        }
        TokenSums<T>::template give<kSets>(scratch.db, t, states, row + rank);
        TokenSums<T>::template give<kSets>(scratch.dc, t, states, row + rank + states);
      }
    };
    run.sets_rows ? write_rows(std::true_type{}) : write_rows(std::false_type{});
  }

  for (int64_t i = 0; i < run.count; ++i) {
    const auto& carried = scratch.carried[i];
    const int64_t d = run.first(i), channels = run.size(i), row = k * s.channels + d;
    if (q.dinitial_state) store_state<T>(q.dinitial_state, s, b, k, d, channels, carried.carry);
    for (int64_t r = 0; r < rank; ++r)
      add_lanes<T>(carried.ddt_weight[r], total.ddt_weight + row * rank + r, rank, channels);
    add_lanes<T>(carried.dbias, total.ddt_bias + row, 1, channels);
    add_lanes<T>(carried.dD, total.dDs + row, 1, channels);
    // A = -exp(A_logs), so dA_logs = dA A; parameters.A contains a factor log2(e).
    for (int64_t n = 0; n < states; ++n) {
      add_lanes<T>(carried.dA[n] * carried.parameters.A[n] * kLn2<T>, total.dA_logs + row * states + n, states,
                   channels);
    }
  }
}

// A work item is (sample, group of directions, run of channel blocks). Directions are split before channels, because
// their rows of dx_dbl are disjoint, whereas each run of channels needs its own dx_dbl. Each group also needs its own
// du. The first of them are the results themselves, to which the others are added in order.
template <typename T, int N>
class BackwardPass {
  // Where the blocks of a map are: in its tensor; packed for all samples, if groups share the map; or packed by each
  // thread, run by run.
  enum class Place { kTensor, kShared, kThread };

  // A thread's memory.
  struct Mine {
    BackwardScratch<T>& scratch;
    ParameterGradients<T> total;
    Vec<T>*u, *dy, *du;  // the planes of a run, `apart` vectors apart
  };

 public:
  explicit BackwardPass(const DirectionalScanBackward& params)
      : q(params),
        p(params.forward),
        s(p.shape),
        blocks(ceil_div(s.channels, kLanes<T>)),
        groups(split(s.batch, s.directions, p.threads)),
        runs(min(blocks, split(s.batch * groups, 64, p.threads))),
        items(s.batch * groups * runs),
        length(min(kRun, ceil_div(blocks, runs))),
        threads(static_cast<int>(min(p.threads, items))),
        parted(groups > 1 && !p.own_inputs),
        u(place_of(p.u, parted)),
        dy(place_of(q.dy, parted && p.merge)),
        du(place_of(q.du, parted)),
        plane(plane_size(tokens)),
        apart(((u == Place::kThread) + (dy == Place::kThread) + (du == Place::kThread)) * plane),
        u_shared(u == Place::kShared ? map_size : 0),
        dy_shared(dy == Place::kShared ? map_size : 0),
        du_parts(parted ? (groups - in_result()) * map_size : 0),
        dx_parts((runs - 1) * x_size),
        planes(threads * length * apart),
        parameters(threads * parameter_size),
        scratch(threads),
        vectors(threads * BackwardScratch<T>::vectors(s)),
        scalars(threads * BackwardScratch<T>::scalars(s)) {}

  int compute() {
    if (!u_shared.ok() || !dy_shared.ok() || !du_parts.ok() || !dx_parts.ok() || !planes.ok() || !parameters.ok() ||
        !scratch.ok() || !vectors.ok() || !scalars.ok()) {
      return kOutOfMemory;
    }
    std::memset(parameters.get(), 0, threads * parameter_size * sizeof(T));
    if (u == Place::kShared || dy == Place::kShared) {
      on_threads(p.threads, [&](int thread, int team) { pack(share(s.batch * blocks, team, thread)); });
    }
    on_threads(threads, [&](int thread, int team) {
      const Mine mine = memory_of(thread);
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) process(item, mine);
    });
    on_threads(p.threads, [&](int thread, int team) {
      if (parted && du == Place::kTensor) add_du(share(s.batch * tokens, team, thread));
      if (parted && du != Place::kTensor) add_packed_du(share(s.batch * blocks, team, thread));
      if (runs > 1) add_parts(share(x_size, team, thread), static_cast<T*>(q.dx_dbl), dx_parts.get(), runs - 1, x_size);
      T* const first = parameters.get();
      add_parts(share(parameter_size, team, thread), first, first + parameter_size, threads - 1, parameter_size);
    });
    give_parameters();
    return kOk;
  }

 private:
  Place place_of(const Tensor<5>& maps, bool shared) const {
    if (in_place<T>(maps, s)) return Place::kTensor;
    return shared ? Place::kShared : Place::kThread;
  }

  int64_t in_result() const { return du == Place::kTensor ? 1 : 0; }  // groups that write to the result

  // A block of the du of a group that does not write to the result. Blocks are counted over all samples.
  Vec<T>* du_part(int64_t group, int64_t block) const {
    return du_parts.get() + (group - in_result()) * map_size + block * plane;
  }

  Mine memory_of(int thread) {
    BackwardScratch<T>& mine = scratch.get()[thread];
    mine.place(vectors.get() + thread * BackwardScratch<T>::vectors(s),
               scalars.get() + thread * BackwardScratch<T>::scalars(s), s);
    Vec<T>* const own_u = planes.get() + thread * length * apart;
    Vec<T>* const own_dy = own_u + (u == Place::kThread ? plane : 0);
    Vec<T>* const own_du = own_dy + (dy == Place::kThread ? plane : 0);
    return {mine, ParameterGradients<T>(parameters.get() + thread * parameter_size, s), own_u, own_dy, own_du};
  }

  // Calls f(block, b, d, channels) for each block in `work`; they are counted over all samples.
  template <typename F>
  void for_each_block(const Share& work, const F& f) const {
    for (int64_t block = work.first; block < work.last; ++block) {
      const int64_t d = block % blocks * kLanes<T>;
      f(block, block / blocks, d, min(kLanes<T>, s.channels - d));
    }
  }

  void pack(const Share& work) {
    for_each_block(work, [&](int64_t block, int64_t b, int64_t d, int64_t channels) {
      const auto load = [&](const Tensor<5>& maps, Vec<T>* to) {
        load_plane<T>(images_of(maps, 0), b, d, channels, s.height, s.width, to + block * plane);
      };
      if (u == Place::kShared) load(p.u, u_shared.get());
      if (dy == Place::kShared) load(q.dy, dy_shared.get());
    });
  }

  void process(int64_t item, const Mine& mine) {
    const int64_t part = item % runs, group = item / runs % groups, b = item / runs / groups;
    const Share directions = share(s.directions, groups, group), my_blocks = share(blocks, runs, part);
    Run<T> run{};
    run.channels = s.channels;
    run.dx_dbl = (part > 0 ? dx_parts.get() + (part - 1) * x_size : static_cast<T*>(q.dx_dbl)) + b * tokens * s.pitch();
    const int64_t rows = (directions.last - directions.first) * s.row();
    for (int64_t l = 0; !all_visited && l < tokens; ++l) {
      std::memset(run.dx_dbl + (l * s.directions + directions.first) * s.row(), 0, rows * sizeof(T));
    }
    for (int64_t block = my_blocks.first; block < my_blocks.last; block += run.count) {
      run.d = block * kLanes<T>;
      run.count = min(length, my_blocks.last - block);
      run.sets_rows = all_visited && block == my_blocks.first;
      for (int64_t k = directions.first; k < directions.last; ++k) {
        const bool first = k == directions.first, last = k + 1 == directions.last;
        const bool new_u = first || p.own_inputs;
        const auto inputs = [&](const Tensor<5>& maps, Place place, const Scratch<Vec<T>>& shared, Vec<T>* own,
                                bool load) {
          if (place == Place::kTensor) return in_place_planes<const T>(maps, b, k, run.d);
          if (place == Place::kShared)
            return packed_planes<const T>(shared.get() + (b * blocks + block) * plane, plane);
          if (load) load_planes<T>(images_of(maps, k), b, s, run, own, apart);
          return packed_planes<const T>(own, apart);
        };
        run.u = inputs(p.u, u, u_shared, mine.u, new_u);
        run.dy = inputs(q.dy, dy, dy_shared, mine.dy, first || !p.merge);
        if (du == Place::kTensor && !(parted && group > 0)) {
          run.du = in_place_planes<T>(q.du, b, k, run.d);
        } else if (parted) {
          run.du = packed_planes<T>(du_part(group, b * blocks + block), plane);
        } else {
          run.du = packed_planes<T>(mine.du, apart);
        }
        run.sets_du = all_visited && new_u;
        for (int64_t i = 0; !all_visited && new_u && i < run.count; ++i) clear(run.du[i], tokens);
        backward_direction<T, N>(q, b, k, run, mine.total, mine.scratch);
        if (du == Place::kThread && (last || p.own_inputs)) {
          store_planes<T>(images_of(q.du, k), b, s, run, mine.du, apart);
        }
      }
    }
  }

  // Adds the groups' du to the result, in place; the work is tokens of all samples.
  void add_du(const Share& work) {
    for (int64_t i = work.first; i < work.last; ++i) {
      const int64_t b = i / tokens, l = i % tokens;
      const Planes<T> result = in_place_planes<T>(q.du, b, 0, 0);
      for (int64_t block = 0; block < blocks; ++block) {
        T* const to = result[block].at(l);
        Vec<T> sum = load(to);
        for (int64_t group = 1; group < groups; ++group) sum += du_part(group, b * blocks + block)[l];
        store(to, sum);
      }
    }
  }

  void add_packed_du(const Share& work) {
    for_each_block(work, [&](int64_t block, int64_t b, int64_t d, int64_t channels) {
      Vec<T>* const sum = du_part(0, block);
      for (int64_t group = 1; group < groups; ++group) {
        const Vec<T>* const more = du_part(group, block);
        for (int64_t l = 0; l < tokens; ++l) sum[l] += more[l];
      }
      store_plane<T>(images_of(q.du, 0), b, d, channels, s.height, s.width, sum);
    });
  }

  // Adds `count` parts of `size` elements each to `sum`.
  static void add_parts(const Share& work, T* sum, const T* parts, int64_t count, int64_t size) {
    for (int64_t i = work.first; i < work.last; ++i) {
      for (int64_t part = 0; part < count; ++part) sum[i] += parts[part * size + i];
    }
  }

  void give_parameters() {
    const ParameterGradients<T> total(parameters.get(), s);
    const int64_t rows = s.directions * s.channels;
    std::memcpy(q.ddt_weight, total.ddt_weight, rows * s.rank * sizeof(T));
    std::memcpy(q.ddt_bias, total.ddt_bias, rows * sizeof(T));
    std::memcpy(q.dA_logs, total.dA_logs, rows * s.states * sizeof(T));
    std::memcpy(q.dDs, total.dDs, rows * sizeof(T));
  }

  const DirectionalScanBackward& q;
  const DirectionalScanForward& p;
  const DirectionalScanShape& s;
  const int64_t tokens = s.tokens();
  const bool all_visited = s.steps == tokens;
  const int64_t blocks, groups, runs, items;
  const int64_t length;  // of a run, at most
  const int threads;
  const bool parted;  // whether each group has its own du
  const Place u, dy, du;
  const int64_t plane, apart;
  const int64_t map_size = s.batch * blocks * plane, x_size = s.batch * tokens * s.pitch();
  const int64_t parameter_size = ParameterGradients<T>::size(s);
  Scratch<Vec<T>> u_shared, dy_shared, du_parts;
  Scratch<T> dx_parts;
  Scratch<Vec<T>> planes;
  Scratch<T> parameters;
  Scratch<BackwardScratch<T>> scratch;
  Scratch<Vec<T>> vectors;
  Scratch<T> scalars;
};

}  // namespace

int directional_scan_backward(const DirectionalScanBackward& p) {
  if (!within_range(p.forward)) return kTokenOutOfRange;
  if (p.forward.use_double) return BackwardPass<double, 0>(p).compute();
  switch (p.forward.shape.states) {
    case 1:
      return BackwardPass<float, 1>(p).compute();
    case 16:
      return BackwardPass<float, 16>(p).compute();
    default:
      return BackwardPass<float, 0>(p).compute();
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
