// Depthwise convolution with kernels of 3, 5 or 7, bias and SiLU.
#include "cpu/depthwise_conv2d/in_place.h"
#include "cpu/depthwise_conv2d/loops.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/silu.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

template <typename T, int kKernel, int kStride>
int run_in_place(const DepthwiseConv2dForward& p) {
  const Plan<T> plan(p, blocks_at_once<T>(p.shape), false);
  const bool far = is_far<T>(p.shape, 1, 1);
  Scratch<Filter<T, kKernel>> filters(plan.threads * plan.lanes);
  if (!filters.ok()) return kOutOfMemory;

  on_threads(plan.threads, [&](int thread, int team) {
    Filter<T, kKernel>* const filter = filters.get() + thread * plan.lanes;
    int64_t group = -1;
    const Share work = share(plan.items, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      const Item item = plan.item(i);
      for (int64_t k = 0; item.group != group && k < item.last - item.first; ++k) {
        filter[k].load(p, plan.place(item, item.first + k));
      }
      group = item.group;
      const Lattice l(p.shape, item.index);
      const Share band = share(l.out_rows, plan.bands, item.band);
      for (int64_t t = band.first; t < band.last; ++t) {
        if (p.silu) {
          convolve_row<T, kKernel, kStride>(p.shape, p.x, p.y, item, l, t, filter, far, WithSilu{});
        } else {
          convolve_row<T, kKernel, kStride>(p.shape, p.x, p.y, item, l, t, filter, far, Plain{});
        }
      }
    }
  });
  return kOk;
}

template <typename T, int kKernel, int kStride, bool kDilated>
struct Forward {
  using V = Vec<T>;

  static int run(const DepthwiseConv2dForward& p) {
    if constexpr (sizeof(T) == sizeof(float)) {
      const int64_t channels = p.shape.channels, whole = channels / kLanes<T> * kLanes<T>;
      if (whole > 0 && has_vectors<T>(p.x) && has_vectors<T>(p.y)) {
        const int status = run_in_place<T, kKernel, kStride>(with_channels(p, 0, whole));
        if (status != kOk || whole == channels) return status;
        return run_packed(with_channels(p, whole, channels - whole));
      }
    }
    return run_packed(p);
  }

  static int run_packed(const DepthwiseConv2dForward& p) {
    const DepthwiseConv2dShape& s = p.shape;
    const int64_t pitch = x_pitch(s), ring = kKernel * pitch;
    const Plan<T> plan(p, packed_lanes<T>(ring), false);
    const int64_t lanes = plan.lanes, size = pitch + whole(s.out_width) + lanes * ring;
    Scratch<V> scratch(plan.threads * size);
    Scratch<Filter<T, kKernel>> filters(plan.threads * lanes);
    if (!scratch.ok() || !filters.ok()) return kOutOfMemory;

    on_threads(plan.threads, [&](int thread, int team) {
      V* const zeros = scratch.get() + thread * size;
      std::memset(zeros, 0, size * sizeof(V));
      V* const out = zeros + pitch;
      V* const rings = out + whole(s.out_width);
      Filter<T, kKernel>* const filter = filters.get() + thread * lanes;
      int64_t group = -1;
      const Share work = share(plan.items, team, thread);
      for (int64_t i = work.first; i < work.last; ++i) {
        const Item item = plan.item(i);
        const Lattice l(s, item.index);
        const Share band = share(l.out_rows, plan.bands, item.band);
        int64_t next[kMaxLanes];
        for (int64_t lane = 0; lane < item.last - item.first; ++lane) {
          next[lane] = band.first * kStride;
          if (item.group != group) filter[lane].load(p, plan.place(item, item.first + lane));
        }
        group = item.group;
        for (int64_t t = band.first; t < band.last; ++t) {
          for (int64_t lane = 0; lane < item.last - item.first; ++lane) {
            const Place place = plan.place(item, item.first + lane);
            Ring<T, kKernel> x(rings + lane * ring, zeros, pitch, s.left);
            x.begin(l.in_first, l.in_last);
            load_window(p, place, l, x, t, next[lane]);
            const V* rows[kKernel];
            x.window(t * kStride, rows);
            with_row<T>(p.y, place, l.first + l.step * t, s.out_width, out, [&](auto write) {
              const auto convolve_to = [&](auto f) {
                convolve<T, kKernel, kStride, kDilated>(rows, s.out_width, s.dilation, filter[lane], f);
              };
              if (p.silu) {
                convolve_to([&](int64_t w, V a) { write(w, silu(a)); });
              } else {
                convolve_to(write);
              }
            });
          }
        }
      }
    });
    return kOk;
  }
};

}  // namespace

int depthwise_conv2d_forward(const DepthwiseConv2dForward& p) {
  return with_shape<Forward>(p, [&](auto pass) { return pass.run(p); });
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
