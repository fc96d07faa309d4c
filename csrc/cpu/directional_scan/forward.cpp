// The selective scan along any orders of the tokens: outputs and last states.
//
// A block of channels is one vector. In channels-last tensors of the type of computation it is read and written in
// place; otherwise its plane is packed once into contiguous vectors, which handles layout, dtype and any number of
// channels in one place. Each direction reads the tokens of the plane in the order of its table.
#include "cpu/directional_scan/planes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

template <typename T>
struct ForwardScratch {
  Parameters<T> parameters;
  Gathered<T> tile;
  Vec<T> h[kMaxStates];
};

// Scans one direction of a plane, and sets the output or adds to it. Prefetches the memory of the next steps meanwhile.
template <typename T, int N>
void forward_direction(const DirectionalScanForward& p, int64_t b, int64_t k, int64_t d, int64_t channels,
                       Plane<const T> plane, Plane<T> out, bool sets, ForwardScratch<T>& scratch) {
  constexpr int64_t kSteps = kTile / 2;  // this much stays in the first-level cache until it is read
  const DirectionalScanShape& s = p.shape;
  const int64_t steps = s.steps, states = N ? N : s.states, pitch = s.pitch();
  Parameters<T>& parameters = scratch.parameters;
  parameters.load(p, k, d, channels);
  const T* x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * s.directions + k) * s.row();
  const int32_t* const order = order_of(p, b, k);
  const uint8_t* const starts = starts_of(p, b, k);
  Gathered<T>& tile = scratch.tile;
  Vec<T>* const h = scratch.h;
  load_state<T>(p.initial_state, s, b, k, d, channels, h);

  for (int64_t first = 0; first < steps; first += kSteps) {
    if (p.checkpoints && first % kTile == 0) {
      const Tensor<2> c = checkpoint<T>(p.checkpoints, b * s.directions + k, first, s, d);
      store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], channels, states, h);
    }
    tile.gather_rows(s, order + first, min(kSteps, steps - first), x_dbl);
    tile.template gather_block<false>(s.rank, parameters, plane);
    const int64_t tokens = tile.scan.tokens;
    const int32_t* const later = order + min(first + kSteps, steps - tokens);
    if (p.checkpoints && (first + kSteps) % kTile == 0 && first + kSteps < steps) {
      const T* next = static_cast<T*>(checkpoint<T>(p.checkpoints, b * s.directions + k, first + kSteps, s, d).data);
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
        prefetch_row<0, N>(x_dbl + later[t] * pitch, s.row());
        __builtin_prefetch(plane.at(later[t]));
        __builtin_prefetch(out.at(later[t]), 1);
        T* merged = out.at(tile.token[t]);
        y += parameters.D * tile.u[t];
        store(merged, sets ? y : load(merged) + y);
      });
    }
  }
  if (p.last_state) store_state<T>(p.last_state, s, b, k, d, channels, h);
}

// A work item is a block of channels of one sample with some of its directions. Directions are split among threads if
// there are fewer blocks than threads; the merged outputs of the parts are added in a fixed order.
template <typename T, int N>
int forward(const DirectionalScanForward& p) {
  const DirectionalScanShape& s = p.shape;
  const int64_t tokens = s.tokens(), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t splits = split(s.batch * blocks, s.directions, p.threads);
  const int64_t items = s.batch * blocks * splits;
  const int threads = static_cast<int>(min(p.threads, items));
  const bool parted = p.merge && splits > 1;  // each part has its own output; they are added at the end
  const bool all_visited = s.steps == tokens;
  Scratch<Vec<T>> parts(parted ? items * tokens : 0);
  Scratch<Vec<T>> planes(threads * tokens * (parted ? 1 : 2));
  Scratch<ForwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> dt_weight(threads * s.rank);
  if (!parts.ok() || !planes.ok() || !scratch.ok() || !dt_weight.ok()) return kOutOfMemory;

  on_threads(threads, [&](int thread, int team) {
    Vec<T>* plane = planes.get() + thread * tokens * (parted ? 1 : 2);
    ForwardScratch<T>& mine = scratch.get()[thread];
    mine.parameters.dt_weight = dt_weight.get() + thread * s.rank;
    int64_t packed = -1;
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t block = item / splits % blocks, b = item / splits / blocks, d = block * kLanes<T>;
      const int64_t channels = min(kLanes<T>, s.channels - d);
      const bool u_in_place = in_place<T>(p.u, s, channels), y_in_place = !parted && in_place<T>(p.y, s, channels);
      Vec<T>* out = parted ? parts.get() + item * tokens : plane + tokens;
      const Share mine_of = share(s.directions, splits, item % splits);
      for (int64_t k = mine_of.first; k < mine_of.last; ++k) {
        const int64_t input = item / splits * s.directions + (p.own_inputs ? k : 0);
        if (!u_in_place && packed != input) {
          load_plane<T>(images_of(p.u, k), b, d, channels, s.height, s.width, plane);
          packed = input;
        }
        const Plane<const T> u_plane = u_in_place ? block_of<const T>(p.u, b, k, d) : packed_plane<const T>(plane);
        const Plane<T> y_plane = y_in_place ? block_of<T>(p.y, b, k, d) : packed_plane<T>(out);
        const bool first = !p.merge || k == mine_of.first;
        if (first && !all_visited) clear(y_plane, tokens);
        forward_direction<T, N>(p, b, k, d, channels, u_plane, y_plane, first && all_visited, mine);
        const bool complete = !p.merge || k + 1 == mine_of.last;
        if (complete && !parted && !y_in_place) {
          store_plane<T>(images_of(p.y, k), b, d, channels, s.height, s.width, out);
        }
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
