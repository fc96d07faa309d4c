// The gradients of the depthwise convolution.
//
// The gradient of the convolution's output goes through a second ring; with SiLU, the convolution is recomputed.
#include <algorithm>

#include "cpu/depthwise_conv2d/both_gradients.h"
#include "cpu/depthwise_conv2d/loops.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

template <typename T, int kKernel, int kStride, bool kDilated>
struct Backward {
  using V = Vec<T>;
  using Rows = Ring<T, kKernel>;

  // A band of the backward pass: the rows of dx that it computes, and the rows of the output that it adds to the
  // filter's gradient.
  struct Band {
    int64_t in_first, in_last, own_first, own_last;

    Band(const Lattice& l, int64_t bands, int64_t band) {
      const Share rows = share(l.in_last - l.in_first, bands, band);
      in_first = l.in_first + rows.first, in_last = l.in_first + rows.last;
      own_first = band == 0 ? 0 : owner(l, in_first);
      own_last = band == bands - 1 ? l.out_rows : owner(l, in_last);
    }

    // The first output row whose window is centred at or below an input row.
    static int64_t owner(const Lattice& l, int64_t row) {
      return clamp(ceil_of(row - kKernel / 2, kStride), 0, l.out_rows);
    }
  };

  static constexpr int kSums = kKernel * kKernel + 1;  // the filter and the bias

  // The layout of a thread's scratch memory, in vectors: zeros, a row, and two rings per lane.
  struct Layout {
    int64_t x_pitch, da_left, da_pitch, pairs, row, zeros, ring;

    explicit Layout(const DepthwiseConv2dShape& s) : x_pitch(MTLKIT_ISA::x_pitch(s)), pairs(0) {
      const int64_t reach = (kKernel - 1) * s.dilation;
      if constexpr (kStride == 1) {
        da_left = reach - s.left;
        da_pitch = max(da_left + whole(s.out_width), whole(s.width) + reach);
      } else {
        pairs = whole(ceil_div(s.width + s.left, 2));
        da_left = kKernel / 2;
        da_pitch = da_left + max(whole(s.out_width), pairs);
      }
      row = max(max(whole(s.out_width), whole(s.width)), 2 * pairs);
      zeros = max(x_pitch, da_pitch);
      ring = kKernel * (x_pitch + da_pitch);
    }
  };

  // A lane of a backward pass.
  struct Lane {
    Filter<T, kKernel> filter, back;
    V sum[kSums];
    int64_t next_x, next_dx;
    Rows x, da;
  };

  static int run(const DepthwiseConv2dBackward& q) {
    const DepthwiseConv2dForward& p = q.forward;
    if constexpr (sizeof(T) == sizeof(float)) {
      const int64_t channels = p.shape.channels, whole = channels / kLanes<T> * kLanes<T>;
      if (whole > 0 && !p.silu && has_vectors<T>(p.x) && has_vectors<T>(q.dy) && has_vectors<T>(q.dx)) {
        const int status = run_in_place(with_channels(q, 0, whole));
        if (status != kOk || whole == channels) return status;
        return run_packed(with_channels(q, whole, channels - whole));
      }
    }
    return run_packed(q);
  }

  // The same call for `count` channels from `first` on.
  static DepthwiseConv2dBackward with_channels(DepthwiseConv2dBackward q, int64_t first, int64_t count) {
    q.forward = MTLKIT_ISA::with_channels(q.forward, first, count);
    q.dy.data = at(q.dy, first * q.dy.stride[1]);
    if (q.dx) q.dx.data = at(q.dx, first * q.dx.stride[1]);
    if (q.dweight) q.dweight = static_cast<T*>(q.dweight) + first * kKernel * kKernel;
    if (q.dbias) q.dbias = static_cast<T*>(q.dbias) + first;
    return q;
  }

  // For stride 1 the input's gradient is the convolution of dy with the rotated filter.
  static DepthwiseConv2dShape turned(DepthwiseConv2dShape s) {
    std::swap(s.height, s.out_height);
    std::swap(s.width, s.out_width);
    s.top = s.dilation * (kKernel - 1) - s.top;
    s.left = s.dilation * (kKernel - 1) - s.left;
    return s;
  }

  static int run_in_place(const DepthwiseConv2dBackward& q) {
    const DepthwiseConv2dForward& p = q.forward;
    const DepthwiseConv2dShape& s = p.shape;
    const DepthwiseConv2dShape back = kStride == 1 ? turned(s) : s;
    const Plan<T> plan(p, blocks_at_once<T>(s), true);
    const bool both = kBothAtOnce<kKernel, kDilated> && q.dx && q.dweight;
    const bool far = is_far<T>(s, q.dx ? 2 : 1, 1, both ? kBothFarBytes : kFarBytes);
    const bool past = far && both && has_aligned_vectors<T>(q.dx);
    Scratch<Filter<T, kKernel>> filters(plan.threads * plan.lanes);
    Scratch<V> bands(plan.threads * plan.lanes * kSums), sums(q.dweight ? plan.parts() * plan.blocks * kSums : 0);
    if (!filters.ok() || !bands.ok() || !sums.ok()) return kOutOfMemory;

    on_threads(plan.threads, [&](int thread, int team) {
      Filter<T, kKernel>* const filter = filters.get() + thread * plan.lanes;
      V* const sum = bands.get() + thread * plan.lanes * kSums;
      int64_t group = -1;
      const Share work = share(plan.items, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item = plan.item(i);
        const int64_t blocks = item.last - item.first;
        for (int64_t k = 0; item.group != group && k < blocks; ++k) {
          filter[k].load(p, plan.place(item, item.first + k));
          if (kStride == 1) filter[k] = filter[k].turned();
        }
        group = item.group;
        std::memset(sum, 0, blocks * kSums * sizeof(V));
        // The rows of dx and of the output alternate, so that both passes find the same lines in the caches.
        const Lattice l(s, item.index), back_l(back, item.index);
        const int64_t in_rows = kStride == 1 ? back_l.out_rows : s.height;
        const Share in = share(in_rows, plan.bands, item.band), out = share(l.out_rows, plan.bands, item.band);
        const int64_t steps = max(out.last - out.first, 1);
        for (int64_t step = 0; step < steps; ++step) {
          const int64_t t = out.first + step;
          if (q.dweight && t < out.last) {
            if (!both) add_row<T, kKernel, kStride>(s, p.x, q.dy, item, l, t, far, sum);
            if (both && q.dbias) add_to_biases<T>(s, q.dy, item, t, sum);
          }
          const Share now = share(q.dx ? in.last - in.first : 0, steps, step);
          for (int64_t u = in.first + now.first; u < in.first + now.last; ++u) {
            if constexpr (kBothAtOnce<kKernel, kDilated>) {
              if (both) {
                pull_both<kStride, T>(back, p.x, q.dy, q.dx, item, back_l, u, filter, far, past, sum);
                continue;
              }
            }
            if constexpr (kStride == 1) {
              convolve_row<T, kKernel, 1>(back, q.dy, q.dx, item, back_l, u, filter, far, Plain{});
            } else {
              spread_row<T, kKernel>(s, q.dy, q.dx, item, u, filter, far);
            }
          }
        }
        for (int64_t k = 0; both && kStride == 1 && k < blocks; ++k) {  // they are those of the rotated filter
          std::reverse(sum + k * kSums, sum + (k + 1) * kSums - 1);
        }
        for (int64_t k = 0; q.dweight && k < blocks; ++k) {
          std::memcpy(sums.get() + ((item.first + k) * plan.parts() + plan.part(item)) * kSums, sum + k * kSums,
                      kSums * sizeof(V));
        }
      }
      if (past) finish_stores_past();
    });
    if (q.dweight) fold(q, plan, sums.get());
    return kOk;
  }

  static int run_packed(const DepthwiseConv2dBackward& q) {
    const DepthwiseConv2dForward& p = q.forward;
    const Layout layout(p.shape);
    const Plan<T> plan(p, packed_lanes<T>(layout.ring), true);
    const int64_t lanes = plan.lanes;
    const int64_t size = layout.zeros + layout.row + lanes * layout.ring;
    Scratch<V> scratch(plan.threads * size);
    Scratch<Lane> all(plan.threads * lanes);
    Scratch<V> sums(q.dweight ? plan.parts() * plan.blocks * kSums : 0);
    if (!scratch.ok() || !all.ok() || !sums.ok()) return kOutOfMemory;

    on_threads(plan.threads, [&](int thread, int team) {
      V* const zeros = scratch.get() + thread * size;
      std::memset(zeros, 0, size * sizeof(V));
      V* const row = zeros + layout.zeros;
      Lane* const lane = all.get() + thread * lanes;
      for (int64_t k = 0; k < lanes; ++k) {
        V* const ring = row + layout.row + k * layout.ring;
        lane[k].x = Rows(ring, zeros, layout.x_pitch, p.shape.left);
        lane[k].da = Rows(ring + kKernel * layout.x_pitch, zeros, layout.da_pitch, layout.da_left);
      }
      int64_t group = -1;
      const Share work = share(plan.items, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item = plan.item(i);
        for (int64_t k = 0; item.group != group && k < item.last - item.first; ++k) {
          lane[k].filter.load(p, plan.place(item, item.first + k));
          lane[k].back = kStride == 1 ? lane[k].filter.turned() : lane[k].filter;
        }
        group = item.group;
        run_item(q, plan, layout, item, lane, row);
        for (int64_t block = item.first; q.dweight && block < item.last; ++block) {
          V* const sum = sums.get() + (block * plan.parts() + plan.part(item)) * kSums;
          std::memcpy(sum, lane[block - item.first].sum, kSums * sizeof(V));
        }
      }
    });
    if (q.dweight) fold(q, plan, sums.get());
    return kOk;
  }

  static void run_item(const DepthwiseConv2dBackward& q, const Plan<T>& plan, const Layout& layout, const Item& item,
                       Lane* lanes, V* row) {
    const Lattice l(q.forward.shape, item.index);
    const Band band(l, plan.bands, item.band);
    // The windows of rows next to the band reach into it, so their gradients are needed too.
    const int64_t begin = min(band.own_first, clamp(ceil_of(band.in_first - kKernel + 1, kStride), 0, l.out_rows));
    const int64_t end = max(band.own_last, clamp(ceil_of(band.in_last, kStride), 0, l.out_rows));
    for (int64_t block = item.first; block < item.last; ++block) {
      Lane& lane = lanes[block - item.first];
      lane.x.begin(l.in_first, l.in_last);
      lane.da.begin(begin, end);
      lane.next_x = begin * kStride, lane.next_dx = band.in_first;
      std::memset(lane.sum, 0, sizeof lane.sum);
    }
    for (int64_t t = begin; t <= end; ++t) {
      for (int64_t block = item.first; block < item.last; ++block) {
        Lane& lane = lanes[block - item.first];
        const Place place = plan.place(item, block);
        if (t < end) take(q, place, l, band, t, lane, row);
        if (q.dx)
          go_back(q, layout, place, l, lane, row, t < end ? min(band.in_last, (t + 1) * kStride) : band.in_last);
      }
    }
  }

  // Processes row t of the output: writes its gradient into the ring, and adds its part of the filter's gradient.
  static void take(const DepthwiseConv2dBackward& q, const Place& place, const Lattice& l, const Band& band, int64_t t,
                   Lane& lane, V* row) {
    const DepthwiseConv2dForward& p = q.forward;
    const DepthwiseConv2dShape& s = p.shape;
    const bool own = q.dweight && t >= band.own_first && t < band.own_last;
    const V* rows[kKernel] = {};
    if (own || p.silu) {
      load_window(p, place, l, lane.x, t, lane.next_x);
      lane.x.window(t * kStride, rows);
    }
    V* const da = lane.da.pixels(t);
    load_row<T>(q.dy, place, l.first + l.step * t, s.out_width, p.silu ? row : da);
    if (lane.da.has(t + 1)) prefetch_row(q.dy, place, l.first + l.step * (t + 1), s.out_width);
    if (p.silu) {
      convolve<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, lane.filter,
                                              [&](int64_t w, V a) { da[w] = row[w] * silu_and_slope(a).slope; });
      lane.da.clear_behind(t, s.out_width);
    }
    if (!own) return;
    add_to_filter<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, da, lane.sum);
    V total{};
    for (int64_t w = 0; w < s.out_width; ++w) total += da[w];
    lane.sum[kSums - 1] += total;
  }

  // Computes the rows of dx from the lane's next row up to `last`.
  static void go_back(const DepthwiseConv2dBackward& q, const Layout& layout, const Place& place, const Lattice& l,
                      Lane& lane, V* row, int64_t last) {
    const DepthwiseConv2dShape& s = q.forward.shape;
    for (int64_t& u = lane.next_dx; u < last; ++u) {
      const int64_t h = l.base + l.step * u;
      const V* rows[kKernel];
      if constexpr (kStride == 1) {
        lane.da.window(u - kKernel + 1, rows);
        with_row<T>(q.dx, place, h, s.width, row, [&](auto write) {
          convolve<T, kKernel, 1, kDilated>(rows, s.width, s.dilation, lane.back, write);
        });
      } else {
        const int odd = static_cast<int>(u & 1);
        for (int i = odd; i < kKernel; i += 2) rows[i / 2] = lane.da.padded((u - i) / 2);
        spread<T, kKernel>(rows, odd, layout.pairs, lane.back, row);
        store_row<T>(q.dx, place, h, s.width, row + s.left);
      }
    }
  }

  // Adds the sums of each block's parts, in a fixed order.
  static void fold(const DepthwiseConv2dBackward& q, const Plan<T>& plan, const V* sums) {
    on_threads(min(plan.threads, plan.blocks), [&](int thread, int team) {
      const Share work = share(plan.blocks, team, thread);
      for (int64_t block = work.first; block < work.last; ++block) {
        V total[kSums] = {};
        for (int64_t part = 0; part < plan.parts(); ++part) {
          for (int i = 0; i < kSums; ++i) total[i] += sums[(block * plan.parts() + part) * kSums + i];
        }
        const int64_t d = block * kLanes<T>, here = min(kLanes<T>, plan.channels - d);
        store_tile<T>(static_cast<T*>(q.dweight) + d * (kSums - 1), dtype_of<T>, kSums - 1, 1, here, kSums - 1, total);
        if (q.dbias) store_tile<T>(static_cast<T*>(q.dbias) + d, dtype_of<T>, 1, 0, here, 1, total + kSums - 1);
      }
    });
  }
};

}  // namespace

int depthwise_conv2d_backward(const DepthwiseConv2dBackward& p) {
  return with_shape<Backward>(p.forward, [&](auto pass) { return pass.run(p); });
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
