// Four-direction 2-D selective scan.
//
// A block of channels is one vector. Where it lies in a channels-last tensor of the type of computation it is read and
// written in place; else its plane is packed once into contiguous vectors, which settles layout, dtype and ragged
// channel counts in one place. Each direction walks the plane by index arithmetic.
#include "cpu/ss2d.h"

#include "cpu/kernels.h"
#include "cpu/scan.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// Walks the pixels of one direction, from token `token` on. Directions 2 and 3 are 0 and 1 backwards.
class Walk {
 public:
  Walk(int direction, const SS2DShape& s, int64_t token) {
    const bool columns = direction % 2, reverse = direction >= 2;
    inner_ = columns ? s.height : s.width;
    step_ = columns ? s.width : 1;
    wrap_ = columns ? 1 - (s.height - 1) * s.width : 1;
    const int64_t outer = token / inner_, inner = token % inner_;
    pixel_ = columns ? inner * s.width + outer : token;
    left_ = inner_ - inner;
    if (reverse) {
      pixel_ = s.tokens() - 1 - pixel_;
      step_ = -step_;
      wrap_ = -wrap_;
    }
  }

  int64_t pixel() const { return pixel_; }

  void next() {
    if (--left_ > 0) {
      pixel_ += step_;
    } else {
      pixel_ += wrap_;
      left_ = inner_;
    }
  }

 private:
  int64_t pixel_, inner_, left_, step_, wrap_;
};

// Asks for the cache lines of a row before its turn comes; for_write is 1 where it will be written. The rows of a
// direction lie too far apart for the machine to guess them.
template <int for_write, typename T>
MTLKIT_INLINE void prefetch(const T* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(row + i, for_write);
}

// The parameters of one direction and one block of channels, as vectors over the channels.
template <typename T>
struct Parameters {
  Vec<T> A[kMaxStates];  // -exp(A_logs) log2(e)
  Vec<T> bias, D;
  Vec<T>* dt_weight;  // (R), scratch of the caller

  void load(const SS2DForward& p, int64_t k, int64_t d, int64_t channels) {
    const SS2DShape& s = p.shape;
    const int64_t row = k * s.channels + d;
    load_tile<T>(at(p.A_logs, row * p.A_logs.stride[0]), p.A_logs.dtype, p.A_logs.stride[0], p.A_logs.stride[1],
                 channels, s.states, A);
    for (int64_t n = 0; n < s.states; ++n) A[n] = exp2(A[n] * kLog2E<T>) * -kLog2E<T>;
    load_tile<T>(at(p.Ds, row * p.Ds.stride[0]), p.Ds.dtype, p.Ds.stride[0], 0, channels, 1, &D);
    load_tile<T>(at(p.dt_bias, k * p.dt_bias.stride[0] + d * p.dt_bias.stride[1]), p.dt_bias.dtype, p.dt_bias.stride[1],
                 0, channels, 1, &bias);
    load_tile<T>(at(p.dt_weight, k * p.dt_weight.stride[0] + d * p.dt_weight.stride[1]), p.dt_weight.dtype,
                 p.dt_weight.stride[1], p.dt_weight.stride[2], channels, s.rank, dt_weight);
  }
};

// ---- Forward --------------------------------------------------------------------------------------------------------

template <typename T>
struct ForwardScratch {
  Parameters<T> parameters;
  Vec<T> h[kMaxStates];
};

// A block of channels of an image, pixel by pixel: packed, or where it lies in a channels-last tensor.
template <typename T>
struct Plane {
  T* data;
  int64_t step;  // elements from pixel to pixel

  T* at(int64_t pixel) const { return data + pixel * step; }
};

// A few tokens of one direction, gathered. Their sums over the rank stand side by side to hide each other's latency.
template <typename T>
struct Ahead {
  static constexpr int64_t kTokens = 4;
  int64_t pixel[kTokens];
  const T* row[kTokens];
  Vec<T> dt[kTokens], u[kTokens];

  // Takes tokens from where the walk stands, `left` of which remain, and leaves the walk behind them; past the end the
  // last token stands again.
  void gather(Walk& walk, int64_t left, const SS2DForward& p, const Parameters<T>& parameters, const T* x_dbl,
              Plane<const T> plane) {
    const int64_t pitch = kDirections * p.shape.row(), rank = p.shape.rank;
    Vec<T> raw[kTokens];
    for (int64_t i = 0; i < kTokens; ++i) {
      pixel[i] = walk.pixel();
      row[i] = x_dbl + pixel[i] * pitch;
      raw[i] = parameters.bias;
      u[i] = load(plane.at(pixel[i]));
      if (i + 1 < left) walk.next();
    }
    for (int64_t r = 0; r < rank; ++r) {
      const Vec<T> weight = parameters.dt_weight[r];
      for (int64_t i = 0; i < kTokens; ++i) raw[i] += weight * row[i][r];
    }
    for (int64_t i = 0; i < kTokens; ++i) dt[i] = softplus(raw[i]);
  }
};

// Scans one direction of a plane into the output, which it sets (first_direction) or adds to.
//
// The time steps of the next few tokens are worked out while the states of those before them are updated: their long
// chains of dependent instructions then hide among independent ones.
template <typename T, int N>
void forward_direction(const SS2DForward& p, int64_t b, int k, int64_t d, int64_t channels, Plane<const T> plane,
                       Plane<T> out, bool first_direction, ForwardScratch<T>& scratch) {
  const SS2DShape& s = p.shape;
  const int64_t tokens = s.tokens(), pitch = kDirections * s.row();
  const int states = N ? N : static_cast<int>(s.states);
  const Parameters<T>& parameters = scratch.parameters;
  scratch.parameters.load(p, k, d, channels);
  const T* x_dbl = static_cast<const T*>(p.x_dbl) + (b * tokens * kDirections + k) * s.row();

  constexpr int64_t kTokens = Ahead<T>::kTokens;
  static_assert(kCheckpointTokens % kTokens == 0, "a checkpoint falls between two gathers");
  Walk walk(k, s, 0), prefetched(k, s, 0);
  for (int64_t i = 0; i < 2 * kTokens; ++i) prefetched.next();
  Vec<T> held[N ? N : 1];
  Vec<T>* h = N ? held : scratch.h;
  for (int n = 0; n < states; ++n) h[n] = Vec<T>{};

  Ahead<T> gathered[2];
  gathered[0].gather(walk, tokens, p, parameters, x_dbl, plane);
  for (int64_t first = 0, turn = 0; first < tokens; first += kTokens, turn ^= 1) {
    if (p.checkpoints && first % kCheckpointTokens == 0) {
      const Tensor<2> c = checkpoint<T>(p.checkpoints, b * kDirections + k, first, s, d);
      store_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], channels, states, h);
    }
    const Ahead<T>& now = gathered[turn];
    if (first + kTokens < tokens) {
      gathered[turn ^ 1].gather(walk, tokens - first - kTokens, p, parameters, x_dbl, plane);
    }
    for (int64_t i = 0; i < min(kTokens, tokens - first); ++i) {
      prefetched.next();  // past the end too, where asking is in vain but allowed
      prefetch<0>(x_dbl + prefetched.pixel() * pitch, s.row());
      __builtin_prefetch(plane.at(prefetched.pixel()));
      __builtin_prefetch(out.at(prefetched.pixel()), 1);

      const T *B = now.row[i] + s.rank, *C = B + states;
      const Vec<T> dt = now.dt[i], u = now.u[i], x = dt * u;
      Vec<T> even{}, odd{};
#pragma GCC unroll 16
      for (int n = 0; n < states; ++n) {
        h[n] = h[n] * exp2(dt * parameters.A[n]) + x * B[n];
        (n & 1 ? odd : even) += h[n] * C[n];
      }
      const Vec<T> y = even + odd + parameters.D * u;
      T* merged = out.at(now.pixel[i]);
      store(merged, first_direction ? y : load(merged) + y);
    }
  }
}

// Whether a whole block of channels can be read and written where it lies: side by side, in the type of computation.
template <typename T>
bool in_place(const Tensor<4>& image, const SS2DShape& s, int64_t channels) {
  const int64_t* stride = image.stride;
  return image.dtype == dtype_of<T> && channels == kLanes<T> && stride[1] == 1 && stride[2] == s.width * stride[3];
}

template <typename T>
Plane<T> block_of(const Tensor<4>& image, int64_t b, int64_t d) {
  return {static_cast<T*>(at(image, b * image.stride[0] + d)), image.stride[3]};
}

template <typename T, typename V>
Plane<T> packed_plane(V* vectors) {
  return {reinterpret_cast<T*>(vectors), static_cast<int64_t>(sizeof(V) / sizeof(T))};
}

// A work item is a block of channels of one image. Where there are fewer items than threads, the directions are split
// among threads, and their outputs are summed in a fixed order.
template <typename T, int N>
int forward(const SS2DForward& p) {
  const SS2DShape& s = p.shape;
  const int64_t tokens = s.tokens(), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t splits = split(s.batch * blocks, kDirections, p.threads);
  const int64_t items = s.batch * blocks * splits;
  const int threads = static_cast<int>(min(p.threads, items));
  // Where directions are split, each part keeps its own output until all are there.
  Scratch<Vec<T>> parts(splits > 1 ? items * tokens : 0);
  Scratch<Vec<T>> planes(threads * tokens * (splits > 1 ? 1 : 2));
  Scratch<ForwardScratch<T>> scratch(threads);
  Scratch<Vec<T>> dt_weight(threads * s.rank);
  if (!parts.ok() || !planes.ok() || !scratch.ok() || !dt_weight.ok()) return kOutOfMemory;

  on_threads(threads, [&](int thread, int team) {
    Vec<T>* plane = planes.get() + thread * tokens * (splits > 1 ? 1 : 2);
    ForwardScratch<T>& mine = scratch.get()[thread];
    mine.parameters.dt_weight = dt_weight.get() + thread * s.rank;
    int64_t packed = -1;
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t block = item / splits % blocks, b = item / splits / blocks, d = block * kLanes<T>;
      const int64_t channels = min(kLanes<T>, s.channels - d);
      const bool u_in_place = in_place<T>(p.u, s, channels), y_in_place = splits == 1 && in_place<T>(p.y, s, channels);
      if (!u_in_place && packed != item / splits) load_plane<T>(p.u, b, d, channels, s.height, s.width, plane);
      packed = item / splits;
      Vec<T>* out = splits > 1 ? parts.get() + item * tokens : plane + tokens;
      const Plane<const T> u_plane = u_in_place ? block_of<const T>(p.u, b, d) : packed_plane<const T>(plane);
      const Plane<T> y_plane = y_in_place ? block_of<T>(p.y, b, d) : packed_plane<T>(out);
      const int per_part = static_cast<int>(kDirections / splits), from = static_cast<int>(item % splits) * per_part;
      for (int k = from; k < from + per_part; ++k) {
        forward_direction<T, N>(p, b, k, d, channels, u_plane, y_plane, k == from, mine);
      }
      if (splits == 1 && !y_in_place) store_plane<T>(p.y, b, d, channels, s.height, s.width, out);
    }
  });
  if (splits == 1) return kOk;

  on_threads(min(p.threads, s.batch * blocks), [&](int thread, int team) {
    const Share work = share(s.batch * blocks, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t b = item / blocks, d = item % blocks * kLanes<T>;
      Vec<T>* sum = parts.get() + item * splits * tokens;
      for (int64_t part = 1; part < splits; ++part) {
        for (int64_t l = 0; l < tokens; ++l) sum[l] += sum[part * tokens + l];
      }
      store_plane<T>(p.y, b, d, min(kLanes<T>, s.channels - d), s.height, s.width, sum);
    }
  });
  return kOk;
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// Gradients of the parameters that one thread gathers over its items; summed over the threads in their order.
template <typename T>
struct ParameterGradients {
  T *ddt_weight, *ddt_bias, *dA_logs, *dDs;

  static int64_t size(const SS2DShape& s) { return kDirections * s.channels * (s.rank + s.states + 2); }

  ParameterGradients(T* memory, const SS2DShape& s)
      : ddt_weight(memory),
        ddt_bias(ddt_weight + kDirections * s.channels * s.rank),
        dA_logs(ddt_bias + kDirections * s.channels),
        dDs(dA_logs + kDirections * s.channels * s.states) {}
};

// One tile of one direction, gathered: time step, scan input and the rows of x_dbl.
template <typename T>
struct Gathered {
  ScanTile<T> scan;
  int64_t pixel[kTile];
  Vec<T> raw[kTile];  // the time step before the softplus

  void gather(const SS2DForward& p, int k, const Parameters<T>& parameters, const T* x_dbl, const Vec<T>* plane,
              int64_t first) {
    const SS2DShape& s = p.shape;
    const int64_t tokens = min(kTile, s.tokens() - first), pitch = kDirections * s.row();
    scan.tokens = tokens;
    scan.states = static_cast<int>(s.states);
    scan.A = parameters.A;
    scan.to_b = s.rank;
    scan.to_c = s.rank + s.states;
    Walk walk(k, s, first);
    for (int64_t t = 0; t < kTile; ++t) {  // past the end, the last token again
      pixel[t] = walk.pixel();
      scan.row[t] = x_dbl + pixel[t] * pitch;
      prefetch<0>(scan.row[t], s.row());
      if (t + 1 < tokens) walk.next();
    }
    constexpr int64_t kAbreast = 4;  // tokens whose sums hide each other's latency
    for (int64_t t = 0; t < tokens; t += kAbreast) {
      Vec<T> sum[kAbreast];
      for (int64_t i = 0; i < kAbreast; ++i) sum[i] = parameters.bias;
      for (int64_t r = 0; r < s.rank; ++r) {
        for (int64_t i = 0; i < kAbreast; ++i) sum[i] += parameters.dt_weight[r] * scan.row[t + i][r];
      }
      for (int64_t i = 0; i < kAbreast; ++i) {
        raw[t + i] = sum[i];
        scan.dt[t + i] = softplus(sum[i]);
        scan.x[t + i] = scan.dt[t + i] * plane[pixel[t + i]];
      }
    }
  }
};

template <typename T>
struct BackwardScratch {
  Parameters<T> parameters;
  Gathered<T> tile;
  Vec<T> start[kMaxStates], carry[kMaxStates], dA[kMaxStates];
  Vec<T> dy[kTile], ddt[kTile], dx[kTile];
  // Sized by the states and the rank of the call.
  Vec<T>*partial, *ddt_weight;
  T *db, *dc;

  static int64_t vectors(const SS2DShape& s) { return 2 * kTile * s.states + 2 * s.rank; }
  static int64_t scalars(const SS2DShape& s) { return 2 * kTile * s.states; }

  void point_into(Vec<T>* v, T* scalar, const SS2DShape& s) {
    partial = v;
    parameters.dt_weight = partial + 2 * kTile * s.states;
    ddt_weight = parameters.dt_weight + s.rank;
    db = scalar;
    dc = db + kTile * s.states;
  }
};

// One direction of one block of channels, from the last tile to the first. Adds to the packed du and to the rows of
// dx_dbl, which no other thread touches.
template <typename T, int N>
void backward_direction(const SS2DForward& p, int64_t b, int k, int64_t d, int64_t channels, const Vec<T>* u_plane,
                        const Vec<T>* dy_plane, Vec<T>* du_plane, T* dx_dbl, const ParameterGradients<T>& total,
                        BackwardScratch<T>& scratch) {
  const SS2DShape& s = p.shape;
  const int64_t rank = s.rank, states = N ? N : s.states, pitch = kDirections * s.row();
  Parameters<T>& parameters = scratch.parameters;
  parameters.load(p, k, d, channels);
  const T* x_dbl = static_cast<const T*>(p.x_dbl) + (b * s.tokens() * kDirections + k) * s.row();
  for (int64_t n = 0; n < states; ++n) scratch.carry[n] = scratch.dA[n] = Vec<T>{};
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
    const Tensor<2> c = checkpoint<T>(p.checkpoints, b * kDirections + k, first, s, d);
    load_tile<T>(c.data, c.dtype, c.stride[0], c.stride[1], channels, states, scratch.start);
    Gathered<T>& tile = scratch.tile;
    tile.gather(p, k, parameters, x_dbl, u_plane, first);
    const int64_t tokens = tile.scan.tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      scratch.dy[t] = dy_plane[tile.pixel[t]];
      prefetch<1>(dx_dbl + tile.pixel[t] * pitch, s.row());
    }
    scan_backward<T, N>(tile.scan, scratch.dy, scratch.start, gradients);

    Vec<T> draw[kTile] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      const Vec<T> dy = scratch.dy[t], dx = scratch.dx[t], u = u_plane[tile.pixel[t]];
      du_plane[tile.pixel[t]] += dx * tile.scan.dt[t] + dy * parameters.D;
      dD += dy * u;
      draw[t] = (scratch.ddt[t] + dx * u) * softplus_slope(tile.raw[t]);
      dbias += draw[t];
      T* row = dx_dbl + tile.pixel[t] * pitch;
      for (int64_t n = 0; n < states; ++n) {
        row[rank + n] += scratch.db[t * states + n];
        row[rank + states + n] += scratch.dc[t * states + n];
      }
    }
    for (int64_t r = 0; r < rank; ++r) {
      Vec<T> sum[4] = {};  // the draw of tokens past the end is 0
      for (int64_t t = 0; t < kTile; t += 4) {
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
        const Vec<T> sum = even + odd;
        for (int64_t i = 0; i < some; ++i) dx_dbl[tile.pixel[t0 + i] * pitch + r] += sum[i];
      }
    }
  }

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

// A work item is (image, group of directions, run of channel blocks). Directions split before channels, because their
// rows of dx_dbl are disjoint, while runs of channels each need a dx_dbl of their own, summed afterwards.
template <typename T, int N>
int backward(const SS2DBackward& q) {
  const SS2DForward& p = q.forward;
  const SS2DShape& s = p.shape;
  const int64_t tokens = s.tokens(), blocks = ceil_div(s.channels, kLanes<T>);
  const int64_t groups = split(s.batch, kDirections, p.threads);
  const int64_t runs = min(blocks, split(s.batch * groups, 64, p.threads));
  const int64_t items = s.batch * groups * runs;
  const int threads = static_cast<int>(min(p.threads, items));
  const int64_t plane_size = s.batch * blocks * tokens, x_size = s.batch * tokens * kDirections * s.row();
  const int64_t parameter_size = ParameterGradients<T>::size(s);

  Scratch<Vec<T>> du_parts(groups > 1 ? groups * plane_size : 0);
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
    const int per_group = static_cast<int>(kDirections / groups);
    const Share work = share(items, team, thread);
    for (int64_t item = work.first; item < work.last; ++item) {
      const int64_t run = item % runs, group = item / runs % groups, b = item / runs / groups;
      T* my_dx = (runs > 1 ? dx_parts.get() + run * x_size : dx) + b * tokens * kDirections * s.row();
      const int from = static_cast<int>(group) * per_group;
      for (int64_t l = 0; l < tokens; ++l) {
        std::memset(my_dx + (l * kDirections + from) * s.row(), 0, per_group * s.row() * sizeof(T));
      }
      const Share my_blocks = share(blocks, runs, run);
      for (int64_t block = my_blocks.first; block < my_blocks.last; ++block) {
        const int64_t d = block * kLanes<T>, channels = min(kLanes<T>, s.channels - d);
        Vec<T>* du_plane =
            groups > 1 ? du_parts.get() + group * plane_size + (b * blocks + block) * tokens : dy_plane + tokens;
        load_plane<T>(p.u, b, d, channels, s.height, s.width, u_plane);
        load_plane<T>(q.dy, b, d, channels, s.height, s.width, dy_plane);
        std::memset(du_plane, 0, tokens * sizeof(Vec<T>));
        for (int k = from; k < from + per_group; ++k) {
          backward_direction<T, N>(p, b, k, d, channels, u_plane, dy_plane, du_plane, my_dx + k * s.row(), total, mine);
        }
        if (groups == 1) store_plane<T>(q.du, b, d, channels, s.height, s.width, du_plane);
      }
    }
  });

  on_threads(p.threads, [&](int thread, int team) {
    if (groups > 1) {
      const Share work = share(s.batch * blocks, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const int64_t b = item / blocks, d = item % blocks * kLanes<T>;
        Vec<T>* sum = du_parts.get() + item * tokens;
        for (int64_t group = 1; group < groups; ++group) {
          for (int64_t l = 0; l < tokens; ++l) sum[l] += sum[group * plane_size + l];
        }
        store_plane<T>(q.du, b, d, min(kLanes<T>, s.channels - d), s.height, s.width, sum);
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
  const int64_t rows = kDirections * s.channels;
  std::memcpy(q.ddt_weight, total.ddt_weight, rows * s.rank * sizeof(T));
  std::memcpy(q.ddt_bias, total.ddt_bias, rows * sizeof(T));
  std::memcpy(q.dA_logs, total.dA_logs, rows * s.states * sizeof(T));
  std::memcpy(q.dDs, total.dDs, rows * sizeof(T));
  return kOk;
}

}  // namespace

int ss2d_forward(const SS2DForward& p) {
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

int ss2d_backward(const SS2DBackward& p) {
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
