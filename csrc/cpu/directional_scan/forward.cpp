// The selective scan along any orders of the tokens: outputs and last states.
//
// A block of channels is one vector. Where it lies in a channels-last tensor of the type of computation it is read and
// written in place; else its plane is packed once into contiguous vectors, which settles layout, dtype and ragged
// channel counts in one place. Each direction reads the tokens of the plane in the order of its table.
#include "cpu/directional_scan/planes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

template <typename T>
struct ForwardScratch {
  Parameters<T> parameters;
  Vec<T> h[kMaxStates];
};

// The tokens of a direction, to be read a few steps past the end too, where the last one stands again.
class Order {
 public:
  static constexpr int64_t kReach = 16;

  Order(const int32_t* order, int64_t steps) : order_(order), steps_(steps), in_tail_(max(steps - kReach, 0)) {
    for (int64_t i = 0; i < 2 * kReach; ++i) tail_[i] = order[min(in_tail_ + i, steps - 1)];
  }

  // kReach tokens from a step on.
  const int32_t* from(int64_t step) const {
    return step + kReach <= steps_ ? order_ + step : tail_ + (step - in_tail_);
  }

 private:
  const int32_t* order_;
  int64_t steps_, in_tail_;
  int32_t tail_[2 * kReach];
};

// A few tokens of one direction, gathered. Their sums over the rank stand side by side to hide each other's latency.
template <typename T>
struct Ahead {
  static constexpr int64_t kTokens = 4;
  int64_t token[kTokens];
  const T* row[kTokens];
  Vec<T> dt[kTokens], u[kTokens];
  bool near;  // whether exp2_near serves their decays

  void gather(const int32_t* tokens, const DirectionalScanForward& p, const Parameters<T>& parameters, const T* x_dbl,
              Plane<const T> plane) {
    const int64_t pitch = p.shape.pitch(), rank = p.shape.rank;
    Vec<T> raw[kTokens];
    for (int64_t i = 0; i < kTokens; ++i) {
      token[i] = tokens[i];
      row[i] = x_dbl + token[i] * pitch;
      raw[i] = parameters.bias;
      u[i] = load(plane.at(token[i]));
    }
    for (int64_t r = 0; r < rank; ++r) {
      const Vec<T> weight = parameters.dt_weight[r];
      for (int64_t i = 0; i < kTokens; ++i) raw[i] += weight * row[i][r];
    }
    for (int64_t i = 0; i < kTokens; ++i) dt[i] = softplus(raw[i]);
    near = decays_near<T>(dt, kTokens, parameters.reach);
  }
};

// Scans one direction of a plane into the output, which it sets or adds to. kStarts says whether p may have starts:
// where the states are held in registers, the branch would cost every call up to a twentieth.
//
// The time steps of the next few tokens are worked out while the states of those before them are updated: their long
// chains of dependent instructions then hide among independent ones.
template <typename T, int N, bool kStarts>
void forward_direction(const DirectionalScanForward& p, int64_t b, int64_t k, int64_t d, int64_t channels,
                       Plane<const T> plane, Plane<T> out, bool sets, ForwardScratch<T>& scratch) {
  const DirectionalScanShape& s = p.shape;
  const int64_t steps = s.steps, pitch = s.pitch(), direction = b * s.directions + k;
  const int states = N ? N : static_cast<int>(s.states);
  const Parameters<T>& parameters = scratch.parameters;
  scratch.parameters.load(p, k, d, channels);
  const T* x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * s.directions + k) * s.row();
  const Order order(order_of(p, b, k), steps);
  const uint8_t* const starts = starts_of(p, b, k);

  constexpr int64_t kTokens = Ahead<T>::kTokens, kPrefetched = 2 * kTokens + 1;
  static_assert(kCheckpointTokens % kTokens == 0, "a checkpoint falls between two gathers");
  static_assert(kPrefetched + kTokens <= Order::kReach, "what is prefetched is within reach");
  Vec<T> held[N ? N : 1];
  Vec<T>* h = N ? held : scratch.h;
  load_state<T>(p.initial_state, s, b, k, d, channels, h);

  Ahead<T> gathered[2];
  gathered[0].gather(order.from(0), p, parameters, x_dbl, plane);
  for (int64_t first = 0, turn = 0; first < steps; first += kTokens, turn ^= 1) {
    if (p.checkpoints && first % kCheckpointTokens == 0) {
      const Tensor<2> c = checkpoint<T>(p.checkpoints, direction, first, s, d);
      store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], channels, states, h);
    }
    const Ahead<T>& now = gathered[turn];
    const int64_t tokens = min(kTokens, steps - first);
    if (first + kTokens < steps) gathered[turn ^ 1].gather(order.from(first + kTokens), p, parameters, x_dbl, plane);
    const int32_t* const later = order.from(first) + kPrefetched;
    const auto advance = [&](auto near) {
      for (int64_t i = 0; i < tokens; ++i) {
        prefetch<0>(x_dbl + later[i] * pitch, s.row());
        __builtin_prefetch(plane.at(later[i]));
        __builtin_prefetch(out.at(later[i]), 1);

        if constexpr (kStarts) {
          if (starts && starts[first + i]) {
            for (int n = 0; n < states; ++n) h[n] = Vec<T>{};
          }
        }
        const T *B = now.row[i] + s.rank, *C = B + states;
        const Vec<T> dt = now.dt[i], u = now.u[i], x = dt * u;
        Vec<T> even{}, odd{};
#pragma GCC unroll 16
        for (int n = 0; n < states; ++n) {
          h[n] = h[n] * exp2_if<decltype(near)::value>(dt * parameters.A[n]) + x * B[n];
          (n & 1 ? odd : even) += h[n] * C[n];
        }
        const Vec<T> y = even + odd + parameters.D * u;
        T* merged = out.at(now.token[i]);
        store(merged, sets ? y : load(merged) + y);
      }
    };
    now.near ? advance(std::true_type{}) : advance(std::false_type{});
  }
  if (p.last_state) store_state<T>(p.last_state, s, b, k, d, channels, h);
}

template <typename T>
void clear(Plane<T> plane, int64_t tokens) {
  for (int64_t l = 0; l < tokens; ++l) store(plane.at(l), Vec<T>{});
}

// A work item is a part of the directions of a block of channels of one sample. Directions are split among threads
// where there are fewer blocks than threads; merged outputs of the parts are summed in a fixed order.
template <typename T, int N>
int forward(const DirectionalScanForward& p) {
  const DirectionalScanShape& s = p.shape;
  const int64_t tokens = s.tokens(), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t splits = split(s.batch * blocks, s.directions, p.threads);
  const int64_t items = s.batch * blocks * splits;
  const int threads = static_cast<int>(min(p.threads, items));
  const bool parted = p.merge && splits > 1;  // each part keeps its own output until all are there
  const bool all_visited = s.steps == tokens;
  const auto scan_direction = p.starts ? forward_direction<T, N, true> : forward_direction<T, N, N == 0>;
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
        scan_direction(p, b, k, d, channels, u_plane, y_plane, first && all_visited, mine);
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
