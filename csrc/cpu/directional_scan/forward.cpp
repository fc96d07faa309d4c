// The selective scan along any orders of the tokens: outputs and last states.
//
// A block of channels is one vector. In channels-last tensors of the type of computation it is read and written in
// place; otherwise its plane is packed once into contiguous vectors, which handles layout, dtype and any number of
// channels in one place. Each direction reads the tokens of the plane in the order of its table, for a run of blocks
// at a time.
#include "cpu/directional_scan/planes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// The largest number of blocks of channels that go through a tile together, so that they share its rows. With more,
// their parameters and states would leave the first-level cache.
inline constexpr int kRun = 8;

template <typename T>
struct ForwardScratch {
  Gathered<T> tile;
  Offsets later;  // the tokens of the next steps
  Parameters<T> parameters[kRun];
  Vec<T>* h[kRun];

  static int64_t vectors(const DirectionalScanShape& s) { return kRun * (Parameters<T>::vectors(s) + s.states); }

  void place(Vec<T>* memory, T* scalars, const DirectionalScanShape& s) {
    tile.place(scalars, s);
    for (int i = 0; i < kRun; ++i) {
      parameters[i].place(memory, s);
      h[i] = memory + Parameters<T>::vectors(s);
      memory = h[i] + s.states;
    }
  }
};

// A run of blocks with its maps, and whether to set the outputs rather than add to them.
template <typename T>
struct ForwardRun : Blocks<T> {
  Planes<const T> u;
  Planes<T> y;
  bool sets;
};

// Scans one direction of a run of blocks. Prefetches the memory of the next steps meanwhile.
template <typename T, int N>
void forward_direction(const DirectionalScanForward& p, int64_t b, int64_t k, const ForwardRun<T>& run,
                       ForwardScratch<T>& scratch) {
  constexpr int64_t kSteps = kVectorBytes == 64 ? kTile : kTile / 2;  // measured: AVX2 loses 5 % with whole tiles
  const DirectionalScanShape& s = p.shape;
  const int64_t steps = s.steps, states = N ? N : s.states, pitch = s.pitch();
  const T* const x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * s.directions + k) * s.row();
  const int32_t* const order = order_of(p, b, k);
  const uint8_t* const starts = starts_of(p, b, k);
  Gathered<T>& tile = scratch.tile;
  Offsets& later = scratch.later;
  for (int64_t i = 0; i < run.count; ++i) {
    scratch.parameters[i].load(p, k, run.first(i), run.size(i));
    load_state<T>(p.initial_state, s, b, k, run.first(i), run.size(i), scratch.h[i]);
  }

  for (int64_t first = 0; first < steps; first += kSteps) {
    const int64_t tokens = min(kSteps, steps - first);
    tile.at.find(order + first, tokens, pitch, run.u.step, run.y.step);
    tile.template gather_rows<N>(s, tokens, x_dbl);
    later.find(order + min(first + kSteps, steps - tokens), tokens, pitch, run.u.step, run.y.step);
    for (int64_t i = 0; i < run.count; ++i) {
      const Parameters<T>& parameters = scratch.parameters[i];
      const T* const u = run.u[i].data;
      T* const out = run.y[i].data;
      Vec<T>* const h = scratch.h[i];
      const auto checkpoint_before = [&](int64_t step) {
        return checkpoint<T>(p.checkpoints, b * s.directions + k, step, s, run.first(i));
      };
      if (p.checkpoints && first % kTile == 0) {
        const Tensor<2> c = checkpoint_before(first);
        store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], run.size(i), states, h);
      }
      tile.template gather_block<false>(s.rank, parameters, u);
      if (p.checkpoints && (first + kSteps) % kTile == 0 && first + kSteps < steps) {
        const T* next = static_cast<T*>(checkpoint_before(first + kSteps).data);
        for (int64_t n = 0; n < states; ++n) __builtin_prefetch(next + n * s.channels, 1);
      }
      for (int64_t from = 0, to = tokens; from < tokens; from = to, to = tokens) {
        if (starts) {  // scan from one start to the next
          if (starts[first + from]) {
            for (int64_t n = 0; n < states; ++n) h[n] = Vec<T>{};
          }
          const void* stop = std::memchr(starts + first + from + 1, 1, tokens - from - 1);
          if (stop) to = static_cast<const uint8_t*>(stop) - (starts + first);
        }
        scan_forward<T, N>(tile.scan, from, to, h, [&](int64_t t, Vec<T> y) {
          if (i == 0) prefetch_row<0, N>(x_dbl + later.row[t], s.row());
          __builtin_prefetch(u + later.u[t]);
          __builtin_prefetch(out + later.y[t], 1);
          T* const merged = out + tile.at.y[t];
          y += parameters.D * load(u + tile.at.u[t]);
          store(merged, run.sets ? y : load(merged) + y);
        });
      }
    }
  }
  for (int64_t i = 0; p.last_state && i < run.count; ++i) {
    store_state<T>(p.last_state, s, b, k, run.first(i), run.size(i), scratch.h[i]);
  }
}

// The number of runs into which to divide the blocks of a sample: as few as give all threads the same work.
int64_t runs_of(int64_t batch, int64_t blocks, int64_t threads) {
  for (int64_t runs = ceil_div(blocks, kRun); runs < blocks; ++runs) {
    if (batch * runs % threads == 0 && blocks % runs == 0) return runs;
  }
  return blocks;
}

// A work item is a run of blocks of one sample with some of its directions. Directions are split among threads if there
// are fewer blocks than threads; the merged outputs of the parts are added in a fixed order.
template <typename T, int N>
int forward(const DirectionalScanForward& p) {
  const DirectionalScanShape& s = p.shape;
  const int64_t tokens = s.tokens(), plane = plane_size(tokens), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t splits = split(s.batch * blocks, s.directions, p.threads);
  const int64_t runs = splits > 1 ? blocks : runs_of(s.batch, blocks, p.threads);
  const int64_t items = s.batch * runs * splits;
  const int threads = static_cast<int>(min(p.threads, items));
  const bool parted = p.merge && splits > 1;  // each part has its own output; they are added at the end
  const bool all_visited = s.steps == tokens;
  const bool u_in_place = in_place<T>(p.u, s), y_in_place = !parted && in_place<T>(p.y, s);
  const int64_t length = ceil_div(blocks, runs), packed_maps = (u_in_place ? 0 : 1) + (y_in_place || parted ? 0 : 1);
  Scratch<Vec<T>> parts(parted ? items * tokens : 0);
  Scratch<Vec<T>> planes(threads * packed_maps * length * plane);
  Scratch<ForwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> vectors(threads * ForwardScratch<T>::vectors(s));
  const int64_t row_size = round_up(Gathered<T>::scalars(s), kLanes<T>);
  Scratch<T> rows(threads * row_size);
  if (!parts.ok() || !planes.ok() || !scratch.ok() || !vectors.ok() || !rows.ok()) return kOutOfMemory;

  on_threads(threads, [&](int thread, int team) {
    Vec<T>* const u_planes = planes.get() + thread * packed_maps * length * plane;
    Vec<T>* const y_planes = u_planes + (u_in_place ? 0 : length * plane);
    ForwardScratch<T>& mine = scratch.get()[thread];
    mine.place(vectors.get() + thread * ForwardScratch<T>::vectors(s), rows.get() + thread * row_size, s);
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t b = item / splits / runs;
      const Share my_blocks = share(blocks, runs, item / splits % runs);
      const Share directions = share(s.directions, splits, item % splits);
      Vec<T>* const out = parted ? parts.get() + item * tokens : y_planes;
      ForwardRun<T> run{};
      run.channels = s.channels;
      run.d = my_blocks.first * kLanes<T>;
      run.count = my_blocks.last - my_blocks.first;
      for (int64_t k = directions.first; k < directions.last; ++k) {
        const bool first = k == directions.first, last = k + 1 == directions.last;
        const bool fresh = first || !p.merge;  // the output has no sum yet to add to
        if (u_in_place) {
          run.u = in_place_planes<const T>(p.u, b, k, run.d);
        } else {
          run.u = packed_planes<const T>(u_planes, plane);
          if (first || p.own_inputs) load_planes<T>(images_of(p.u, k), b, s, run, u_planes, plane);
        }
        run.y = y_in_place ? in_place_planes<T>(p.y, b, k, run.d) : packed_planes<T>(out, plane);
        run.sets = fresh && all_visited;
        for (int64_t i = 0; fresh && !all_visited && i < run.count; ++i) clear(run.y[i], tokens);
        forward_direction<T, N>(p, b, k, run, mine);
        if (!parted && !y_in_place && (last || !p.merge)) store_planes<T>(images_of(p.y, k), b, s, run, out, plane);
      }
    }
  });
  if (!parted) return kOk;

  on_threads(min(p.threads, s.batch * blocks), [&](int thread, int team) {
    const Share work = share(s.batch * blocks, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t b = item / blocks, d = item % blocks * kLanes<T>;
      Vec<T>* sum = parts.get() + item * splits * tokens;
      for (int64_t part = 1; part < splits; ++part) {
        for (int64_t l = 0; l < tokens; ++l) sum[l] += sum[part * tokens + l];
      }
      store_plane<T>(images_of(p.y, 0), b, d, min(kLanes<T>, s.channels - d), s.height, s.width, sum);
    }
  });
  return kOk;
}

}  // namespace

int directional_scan_forward(const DirectionalScanForward& p) {
  if (!within_range(p)) return kTokenOutOfRange;
  if (p.use_double) return forward<double, 0>(p);
  switch (p.shape.states) {
    case 1:
      return forward<float, 1>(p);
    case 16:
      return forward<float, 16>(p);
    default:
      return forward<float, 0>(p);
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
