// Depthwise causal convolution of a few taps, bias and SiLU.
//
// There are two implementations. If channels are contiguous, vectors run over the channels: a column, one vector wide,
// walks over a tile of tokens with its last w values in registers. Then the next column follows, whose pages and cache
// lines are partly loaded already. For all other layouts vectors run over the tokens of one channel, which are first
// copied to a contiguous buffer in one dtype, after the values that precede the first token.
//
// A sequence begins with its initial states or zeros and ends at a boundary. The implementations process one sequence,
// or a part of one, at a time. The backward pass walks from the end, because a token's gradient depends on later ones.
#include "cpu/causal_conv1d.h"

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"
#include "cpu/threads.h"
#include "cpu/tile_io.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kTile = 64;      // tokens per tile
constexpr int64_t kLeastRun = 16;  // tokens per thread, at least
constexpr int64_t kPiece = 512;    // tokens per buffer
constexpr int64_t kAround = 16;    // elements of a buffer before the first token and after the last

// Tokens [first, last) of the sequence [start, stop). start and stop are exact only within the reach of a filter.
struct Part {
  int64_t first, last, start, stop;
};

// Calls f for each part of the run [first, last) of a batch item, from the last to the first, and `pad` for tokens
// outside all sequences.
template <typename F, typename G>
void for_each_part(const CausalConv1dShape& shape, const int32_t* seq_idx, int64_t first, int64_t last, F f, G pad) {
  if (!seq_idx) return f(Part{first, last, 0, shape.tokens});
  const int64_t reach = shape.width - 1;
  for (int64_t end = last; end > first;) {
    const int32_t index = seq_idx[end - 1];
    Part part{end - 1, end, 0, end};
    while (part.first > first && seq_idx[part.first - 1] == index) --part.first;
    part.start = part.first;
    while (part.start > max(0, part.first - reach) && seq_idx[part.start - 1] == index) --part.start;
    while (part.stop < min(shape.tokens, end + reach) && seq_idx[part.stop] == index) ++part.stop;
    index < 0 ? pad(part.first, end) : f(part);
    end = part.first;
  }
}

// The taps and the bias of all channels: kWidth + 1 vectors per column. The last column ends with the last channel and
// may overlap the previous one.
template <typename T, int kWidth>
struct Filters {
  int64_t channels, columns;
  Scratch<Vec<T>> memory;

  explicit Filters(const CausalConv1dForward& p)
      : channels(p.shape.channels), columns(ceil_div(channels, kLanes<T>)), memory(columns * (kWidth + 1)) {
    if (!ok()) return;
    for (int64_t column = 0; column < columns; ++column) {
      Vec<T>* const filter = of(column);
      load_tile<T>(at(p.weight, first(column) * p.weight.stride[0]), p.weight.dtype, p.weight.stride[0],
                   p.weight.stride[1], min(kLanes<T>, channels), kWidth, filter);
      filter[kWidth] = Vec<T>{};
      if (!p.bias) continue;
      load_tile<T>(at(p.bias, first(column) * p.bias.stride[0]), p.bias.dtype, p.bias.stride[0], 0,
                   min(kLanes<T>, channels), 1, filter + kWidth);
    }
  }

  bool ok() const { return memory.ok(); }
  int64_t first(int64_t column) const { return max(0, min(column * kLanes<T>, channels - kLanes<T>)); }
  Vec<T>* of(int64_t column) const { return memory.get() + column * (kWidth + 1); }

  // One tap, or the bias, of one channel in all lanes.
  Vec<T> of_channel(int64_t d, int tap) const {
    const int64_t column = min(d / kLanes<T>, columns - 1);
    return splat(of(column)[tap][d - first(column)]);
  }
};

template <int kWidth, typename V>
MTLKIT_INLINE V convolve(const V* filter, const V* x) {
  V sum = filter[kWidth];
#pragma GCC unroll 4
  for (int i = 0; i < kWidth; ++i) sum += filter[i] * x[i];
  return sum;
}

// The gradient of a token, from the gradients of the convolution at this token and the following ones.
template <int kWidth, typename V>
MTLKIT_INLINE V convolve_back(const V* filter, const V* da) {
  V sum = filter[kWidth - 1] * da[0];
#pragma GCC unroll 4
  for (int i = 1; i < kWidth; ++i) sum += filter[kWidth - 1 - i] * da[i];
  return sum;
}

template <bool kSilu, typename V>
MTLKIT_INLINE V activate(V a) {
  if constexpr (kSilu) return silu(a);
  return a;
}

template <bool kSilu, typename V>
MTLKIT_INLINE V activate_back(V a, V dy) {
  if constexpr (kSilu) return dy * silu_and_slope(a).slope;
  return dy;
}

// Stores the gradients of the taps and the bias, in the layout of Filters.
template <typename T, int kWidth>
void store_filter_gradients(const CausalConv1dBackward& q, int64_t d, int64_t channels, const Vec<T>* sum) {
  T* const dweight = static_cast<T*>(q.dweight);
  T* const dbias = static_cast<T*>(q.dbias);
  store_tile<T>(dweight + d * kWidth, dtype_of<T>, kWidth, 1, channels, kWidth, sum);
  if (dbias) store_tile<T>(dbias + d, dtype_of<T>, 1, 0, channels, 1, sum + kWidth);
}

// ---- Channels side by side ------------------------------------------------------------------------------------------

template <typename T, typename E, int kWidth, bool kSilu>
class Columns {
  using Storage = typename E::Storage;
  static constexpr int kReach = kWidth - 1;

 public:
  explicit Columns(const CausalConv1dForward& params)
      : p(params),
        filters(params),
        runs(max(1, min(p.shape.tokens / kLeastRun, split(p.shape.batch, 64, p.threads)))),
        items(p.shape.batch * runs),
        threads(static_cast<int>(max(1, min(p.threads, items)))) {}

  int forward() const {
    if (!filters.ok()) return kOutOfMemory;
    on_threads(threads, [&](int thread, int team) {
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        for_each_item_part(
            item, [&](int64_t b, const Part& part) { forward_part(b, part); },
            [&](int64_t b, int64_t first, int64_t last) { clear(p.y, b, first, last); });
      }
    });
    return kOk;
  }

  int backward(const CausalConv1dBackward& q) const {
    const int64_t size = filters.columns * (kWidth + 1 + kReach);
    Scratch<Vec<T>> scratch(threads * size);
    if (!filters.ok() || !scratch.ok()) return kOutOfMemory;
    std::memset(scratch.get(), 0, threads * size * sizeof(Vec<T>));

    on_threads(threads, [&](int thread, int team) {
      Vec<T>* const sums = scratch.get() + thread * size;
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        for_each_item_part(
            item,
            [&](int64_t b, const Part& part) {
              backward_part(q, b, part, sums, sums + filters.columns * (kWidth + 1));
            },
            [&](int64_t b, int64_t first, int64_t last) { clear(q.dx, b, first, last); });
      }
    });

    for (int64_t column = 0; column < filters.columns; ++column) {
      Vec<T>* const sum = scratch.get() + column * (kWidth + 1);
      for (int64_t thread = 1; thread < threads; ++thread) {
        for (int i = 0; i <= kWidth; ++i) sum[i] += sum[thread * size + i];
      }
      store_filter_gradients<T, kWidth>(q, filters.first(column), kLanes<T>, sum);
    }
    return kOk;
  }

 private:
  template <typename F, typename G>
  void for_each_item_part(int64_t item, F f, G pad) const {
    const int64_t b = item / runs;
    const Share run = share(p.shape.tokens, runs, item % runs);
    for_each_part(
        p.shape, p.seq_idx ? p.seq_idx + b * p.shape.tokens : nullptr, run.first, run.last,
        [&](const Part& part) { f(b, part); }, [&](int64_t first, int64_t last) { pad(b, first, last); });
  }

  static Storage* address(const Tensor<3>& t, int64_t b, int64_t d, int64_t token) {
    return static_cast<Storage*>(t.data) + b * t.stride[0] + d + token * t.stride[2];
  }

  void clear(const Tensor<3>& t, int64_t b, int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) {
      std::memset(address(t, b, 0, i), 0, p.shape.channels * sizeof(Storage));
    }
  }

  // Loads the tokens before `token` into out, the nearest last: from x, or from the initial states or zeros before the
  // sequence.
  void before(int64_t b, int64_t d, int64_t token, int64_t start, Vec<T>* out) const {
    if (token - kReach < start) {
      if (p.initial_states && start == 0) {
        const int64_t* s = p.initial_states.stride;
        Vec<T> states[kReach];
        load_tile<T>(at(p.initial_states, b * s[0] + d * s[1]), p.initial_states.dtype, s[1], s[2], kLanes<T>, kReach,
                     states);
        for (int i = 0; i < kReach; ++i) out[i] = token + i < kReach ? states[token + i] : Vec<T>{};
      } else {
        for (int i = 0; i < kReach; ++i) out[i] = Vec<T>{};
      }
    }
    for (int64_t i = max(0, start - token + kReach); i < kReach; ++i) {
      out[i] = E::read(address(p.x, b, d, token - kReach + i), T{});
    }
  }

  void forward_part(int64_t b, const Part& part) const {
    for (int64_t first = part.first; first < part.last; first += kTile) {
      const int64_t last = min(part.last, first + kTile);
      for (int64_t column = 0; column < filters.columns; ++column) {
        const int64_t d = filters.first(column);
        Vec<T> window[kWidth], filter[kWidth + 1];
        before(b, d, first, part.start, window);
        for (int i = 0; i <= kWidth; ++i) filter[i] = filters.of(column)[i];
        const Storage* x = address(p.x, b, d, first);
        Storage* y = address(p.y, b, d, first);
#pragma GCC unroll 4
        for (int64_t t = first; t < last; ++t, x += p.x.stride[2], y += p.y.stride[2]) {
          __builtin_prefetch(x + kLanes<T>);
          window[kReach] = E::read(x, T{});
          E::write(y, activate<kSilu>(convolve<kWidth>(filter, window)));
          for (int i = 0; i < kReach; ++i) window[i] = window[i + 1];
        }
      }
    }
  }

  // Adds the gradients of the filters to `sums`; `after` is scratch for the gradients of the convolution at the
  // following tokens.
  void backward_part(const CausalConv1dBackward& q, int64_t b, const Part& part, Vec<T>* sums, Vec<T>* after) const {
    for (int64_t column = 0; column < filters.columns; ++column) {
      const int64_t d = filters.first(column);
      const Vec<T>* filter = filters.of(column);
      for (int i = 0; i < kReach; ++i) {  // the following tokens belong to another run or do not exist
        const int64_t t = part.last + i;
        Vec<T>& da = after[column * kReach + i];
        da = Vec<T>{};
        if (t >= part.stop) continue;
        Vec<T> window[kWidth];
        before(b, d, t, part.start, window);
        window[kReach] = E::read(address(p.x, b, d, t), T{});
        da = activate_back<kSilu>(convolve<kWidth>(filter, window), E::read(address(q.dy, b, d, t), T{}));
      }
    }
    for (int64_t last = part.last; last > part.first; last -= kTile) {
      const int64_t first = max(part.first, last - kTile);
      for (int64_t column = 0; column < filters.columns; ++column) {
        backward_column(q, b, column, first, last, part, sums + column * (kWidth + 1), after + column * kReach);
      }
    }
    if (part.first > 0 || !q.dinitial_states) return;
    for (int64_t column = 0; column < filters.columns; ++column) {
      Vec<T> da[kWidth + kReach] = {}, states[kReach];  // there are no convolutions before the first token
      for (int i = 0; i < kReach; ++i) da[kReach + i] = after[column * kReach + i];
      for (int i = 0; i < kReach; ++i) states[i] = convolve_back<kWidth>(filters.of(column), da + i);
      const int64_t *s = q.dinitial_states.stride, d = filters.first(column);
      store_tile<T>(at(q.dinitial_states, b * s[0] + d * s[1]), q.dinitial_states.dtype, s[1], s[2], kLanes<T>, kReach,
                    states);
    }
  }

  void backward_column(const CausalConv1dBackward& q, int64_t b, int64_t column, int64_t first, int64_t last,
                       const Part& part, Vec<T>* sums, Vec<T>* after) const {
    const int64_t d = filters.first(column);
    Vec<T> filter[kWidth + 1], sum[kWidth + 1] = {}, da[kWidth], head[kReach], window[kWidth];
    for (int i = 0; i <= kWidth; ++i) filter[i] = filters.of(column)[i];
    for (int i = 0; i < kReach; ++i) da[i] = after[i];
    before(b, d, first, part.start, head);
    // the window of the token after the last; the first step moves it to the last token
    for (int i = 0; i < kReach; ++i) {
      const int64_t t = last - kReach + i;
      window[i] = t >= first ? E::read(address(p.x, b, d, t), T{}) : head[t - first + kReach];
    }
    const auto step = [&](int64_t t, Vec<T> x) __attribute__((always_inline)) {
      for (int i = kReach; i > 0; --i) window[i] = window[i - 1];
      window[0] = x;
      for (int i = kReach; i > 0; --i) da[i] = da[i - 1];
      da[0] = activate_back<kSilu>(convolve<kWidth>(filter, window), E::read(address(q.dy, b, d, t), T{}));
      for (int i = 0; i < kWidth; ++i) sum[i] += da[0] * window[i];
      sum[kWidth] += da[0];
      E::write(address(q.dx, b, d, t), convolve_back<kWidth>(filter, da));
    };
    int64_t t = last - 1;
#pragma GCC unroll 4
    for (; t >= first + kReach; --t) step(t, E::read(address(p.x, b, d, t - kReach), T{}));
    for (; t >= first; --t) step(t, head[t - first]);
    for (int i = 0; i <= kWidth; ++i) sums[i] += sum[i];
    for (int i = 0; i < kReach; ++i) after[i] = da[i];
  }

  const CausalConv1dForward& p;
  Filters<T, kWidth> filters;
  int64_t runs, items;
  int threads;
};

// ---- Any other layout -----------------------------------------------------------------------------------------------

// Processes one channel at a time. In the buffers of a piece, token t is element t - first, and elements after the last
// token are 0.
template <typename T, typename E, int kWidth, bool kSilu>
class Rows {
  using Storage = typename E::Storage;
  static constexpr int kReach = kWidth - 1;
  static constexpr int64_t kBuffer = kPiece + 2 * kAround;

 public:
  explicit Rows(const CausalConv1dForward& params)
      : p(params),
        filters(params),
        items(p.shape.batch * p.shape.channels),
        threads(static_cast<int>(max(1, min(p.threads, items)))) {}

  int forward() const {
    Scratch<T> scratch(threads * kBuffer);
    if (!filters.ok() || !scratch.ok()) return kOutOfMemory;
    on_threads(threads, [&](int thread, int team) {
      T* const x = scratch.get() + thread * kBuffer + kAround;
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const int64_t b = item / p.shape.channels, d = item % p.shape.channels;
        for_each_part(
            p.shape, p.seq_idx ? p.seq_idx + b * p.shape.tokens : nullptr, 0, p.shape.tokens,
            [&](const Part& part) { forward_part(b, d, part, x); },
            [&](int64_t first, int64_t last) { clear(p.y, b, d, first, last); });
      }
    });
    return kOk;
  }

  int backward(const CausalConv1dBackward& q) const {
    Scratch<T> scratch(threads * 2 * kBuffer);
    Scratch<T> sums(items * (kWidth + 1));
    if (!filters.ok() || !scratch.ok() || !sums.ok()) return kOutOfMemory;
    on_threads(threads, [&](int thread, int team) {
      T* const x = scratch.get() + thread * 2 * kBuffer + kAround;
      T* const da = x + kBuffer;
      const Share work = share(items, team, thread);
      for (int64_t item = work.first; item < work.last; ++item) {
        const int64_t b = item / p.shape.channels, d = item % p.shape.channels;
        Vec<T> sum[kWidth + 1] = {};
        for_each_part(
            p.shape, p.seq_idx ? p.seq_idx + b * p.shape.tokens : nullptr, 0, p.shape.tokens,
            [&](const Part& part) { backward_part(q, b, d, part, x, da, sum); },
            [&](int64_t first, int64_t last) { clear(q.dx, b, d, first, last); });
        for (int i = 0; i <= kWidth; ++i) {
          T total = 0;
          for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[i][lane];
          sums.get()[item * (kWidth + 1) + i] = total;
        }
      }
    });

    for (int64_t d = 0; d < p.shape.channels; ++d) {
      Vec<T> sum[kWidth + 1] = {};
      for (int64_t b = 0; b < p.shape.batch; ++b) {
        for (int i = 0; i <= kWidth; ++i) sum[i] += sums.get()[(b * p.shape.channels + d) * (kWidth + 1) + i];
      }
      store_filter_gradients<T, kWidth>(q, d, 1, sum);
    }
    return kOk;
  }

 private:
  static Storage* address(const Tensor<3>& t, int64_t b, int64_t d, int64_t token) {
    return static_cast<Storage*>(t.data) + b * t.stride[0] + d * t.stride[1] + token * t.stride[2];
  }

  void clear(const Tensor<3>& t, int64_t b, int64_t d, int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) *address(t, b, d, i) = Storage{};
  }

  static Vec<T> read(const Storage* data, int64_t stride, int64_t count) {
    if (stride == 1) return count >= kLanes<T> ? E::read(data, T{}) : read_some<T, E>(data, count);
    Storage lanes[kLanes<T>] = {};
    for (int64_t i = 0; i < min(kLanes<T>, count); ++i) lanes[i] = data[i * stride];
    return E::read(lanes, T{});
  }

  static void write(Storage* data, int64_t stride, int64_t count, Vec<T> v) {
    if (stride == 1) return count >= kLanes<T> ? E::write(data, v) : write_some<T, E>(data, v, count);
    Storage lanes[kLanes<T>];
    E::write(lanes, v);
    for (int64_t i = 0; i < min(kLanes<T>, count); ++i) data[i * stride] = lanes[i];
  }

  // The initial state of token `token`, which is negative.
  static T state(const Tensor<3>& states, int64_t b, int64_t d, int64_t token) {
    const int64_t* s = states.stride;
    Vec<T> v;
    load_tile<T>(at(states, b * s[0] + d * s[1] + (token + kReach) * s[2]), states.dtype, 1, 1, 1, 1, &v);
    return v[0];
  }

  // Loads a piece of x and the tokens before it.
  void load_piece(int64_t b, int64_t d, int64_t first, int64_t last, int64_t start, T* x) const {
    const int64_t stride = p.x.stride[2];
    const Storage* data = address(p.x, b, d, first);
    for (int64_t i = 0; i < last - first; i += kLanes<T>) {
      store(x + i, read(data + i * stride, stride, last - first - i));
    }
    for (int64_t i = -kReach; i < 0; ++i) {
      const int64_t t = first + i;
      x[i] = t >= start ? read(address(p.x, b, d, t), 1, 1)[0] : 0;
      if (t < start && start == 0 && p.initial_states) x[i] = state(p.initial_states, b, d, t);
    }
  }

  // Loads the filter into all lanes.
  void load_filter(int64_t d, Vec<T>* filter) const {
    for (int i = 0; i <= kWidth; ++i) filter[i] = filters.of_channel(d, i);
  }

  static void load_window(const T* x, Vec<T>* window) {
    for (int i = 0; i < kWidth; ++i) window[i] = load(x + i - kReach);
  }

  void forward_part(int64_t b, int64_t d, const Part& part, T* x) const {
    const int64_t stride = p.y.stride[2];
    Vec<T> filter[kWidth + 1], window[kWidth];
    load_filter(d, filter);
    // The buffer is used only for the vectors whose taps reach before the part.
    constexpr int64_t kHead = (kReach + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    const int64_t tokens = part.last - part.first;
    if (p.x.stride[2] == 1 && stride == 1 && tokens >= kHead + kLanes<T>) {
      const Storage* data = address(p.x, b, d, part.first);
      Storage* y = address(p.y, b, d, part.first);
      load_piece(b, d, part.first, part.first + kHead, part.start, x);
      for (int64_t i = 0; i < kHead; i += kLanes<T>) {
        load_window(x + i, window);
        E::write(y + i, activate<kSilu>(convolve<kWidth>(filter, window)));
      }
      for (int64_t i = kHead; i < tokens; i += kLanes<T>) {
        const int64_t at = min(i, tokens - kLanes<T>);  // the last vector may overlap the previous one
        for (int k = 0; k < kWidth; ++k) window[k] = E::read(data + at + k - kReach, T{});
        E::write(y + at, activate<kSilu>(convolve<kWidth>(filter, window)));
      }
      return;
    }
    for (int64_t first = part.first; first < part.last; first += kPiece) {
      const int64_t count = min(part.last - first, kPiece);
      Storage* y = address(p.y, b, d, first);
      load_piece(b, d, first, first + count, part.start, x);
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        load_window(x + i, window);
        write(y + i * stride, stride, count - i, activate<kSilu>(convolve<kWidth>(filter, window)));
      }
    }
  }

  void backward_part(const CausalConv1dBackward& q, int64_t b, int64_t d, const Part& part, T* x, T* da,
                     Vec<T>* sums) const {
    Vec<T> filter[kWidth + 1], sum[kWidth + 1] = {}, window[kWidth];
    load_filter(d, filter);
    T after[kReach] = {};  // the gradients of the convolution at the first tokens of the following piece
    for (int64_t last = part.last; last > part.first; last -= kPiece) {
      const int64_t first = max(part.first, last - kPiece), count = last - first;
      const Storage* dy = address(q.dy, b, d, first);
      Storage* dx = address(q.dx, b, d, first);
      load_piece(b, d, first, last, part.start, x);
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        load_window(x + i, window);
        Vec<T> g = activate_back<kSilu>(convolve<kWidth>(filter, window),
                                        read(dy + i * q.dy.stride[2], q.dy.stride[2], count - i));
        if (count - i < kLanes<T>) {  // after the last token, the gradient and x must be 0
          for (int64_t lane = count - i; lane < kLanes<T>; ++lane) {
            g[lane] = 0;
            for (int k = 0; k < kWidth; ++k) window[k][lane] = 0;
          }
        }
        store(da + i, g);
        for (int k = 0; k < kWidth; ++k) sum[k] += g * window[k];
        sum[kWidth] += g;
      }
      for (int i = 0; i < kReach; ++i) da[count + i] = after[i];
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        for (int k = 0; k < kWidth; ++k) window[k] = load(da + i + k);
        write(dx + i * q.dx.stride[2], q.dx.stride[2], count - i, convolve_back<kWidth>(filter, window));
      }
      for (int i = 0; i < kReach; ++i) after[i] = da[i];
    }
    for (int i = 0; i <= kWidth; ++i) sums[i] += sum[i];
    if (part.first > 0 || !q.dinitial_states) return;
    Vec<T> gradients[kWidth + kReach] = {}, states[kReach];
    for (int i = 0; i < kReach; ++i) gradients[kReach + i] = splat(after[i]);
    for (int i = 0; i < kReach; ++i) states[i] = convolve_back<kWidth>(filter, gradients + i);
    const int64_t* s = q.dinitial_states.stride;
    store_tile<T>(at(q.dinitial_states, b * s[0] + d * s[1]), q.dinitial_states.dtype, s[1], s[2], 1, kReach, states);
  }

  const CausalConv1dForward& p;
  Filters<T, kWidth> filters;
  int64_t items;
  int threads;
};

// ---- The choice of a body -------------------------------------------------------------------------------------------

template <template <typename, typename, int, bool> class Body, typename T, typename E, int kWidth, typename F>
int with_activation(const CausalConv1dForward& p, F f) {
  return p.silu ? f(Body<T, E, kWidth, true>(p)) : f(Body<T, E, kWidth, false>(p));
}

template <template <typename, typename, int, bool> class Body, typename T, typename E, typename F>
int with_width(const CausalConv1dForward& p, F f) {
  switch (p.shape.width) {
    case 2:
      return with_activation<Body, T, E, 2>(p, f);
    case 3:
      return with_activation<Body, T, E, 3>(p, f);
    default:
      return with_activation<Body, T, E, 4>(p, f);
  }
}

template <typename T, DType dtype, typename F>
int with_body(const CausalConv1dForward& p, bool channels_inside, F f) {
  using E = Element<dtype>;
  return channels_inside && p.shape.channels >= kLanes<T> ? with_width<Columns, T, E>(p, f)
                                                          : with_width<Rows, T, E>(p, f);
}

// Calls f with the implementation for the layout, the dtype of x, the width and the activation.
template <typename F>
int dispatch(const CausalConv1dForward& p, bool channels_inside, F f) {
  switch (p.x.dtype) {
    case DType::kFloat64:
      return with_body<double, DType::kFloat64>(p, channels_inside, f);
    case DType::kBFloat16:
      return with_body<float, DType::kBFloat16>(p, channels_inside, f);
    case DType::kFloat16:
      return with_body<float, DType::kFloat16>(p, channels_inside, f);
    default:
      return with_body<float, DType::kFloat32>(p, channels_inside, f);
  }
}

}  // namespace

int causal_conv1d_forward(const CausalConv1dForward& p) {
  const bool channels_inside = p.x.stride[1] == 1 && p.y.stride[1] == 1;
  return dispatch(p, channels_inside, [](const auto& body) { return body.forward(); });
}

int causal_conv1d_backward(const CausalConv1dBackward& q) {
  const CausalConv1dForward& p = q.forward;
  const bool channels_inside = p.x.stride[1] == 1 && q.dy.stride[1] == 1 && q.dx.stride[1] == 1;
  return dispatch(p, channels_inside, [&](const auto& body) { return body.backward(q); });
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
