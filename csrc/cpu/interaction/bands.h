// Task interaction: shared by its passes (formulas: interaction.h).
//
// In the reducing pass a work item is an image or a run of its pixels, processed in bands: some pixels, all channels,
// packed into a panel (C, pixels) that fits in the second-level cache. Packing handles layout, dtype and sizes that do
// not divide evenly in one place. The projected map is computed from the panel in blocks of registers, and each block
// is added to the sums at once.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/interaction/interaction.h"
#include "cpu/interaction/packed_matrix.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Bytes of a band. Forward, a band must fit in the second-level cache along with the weights. Backward it can be
// larger: each band goes once through the gradient of the weights, and the rest works on a part of a panel at a time.
inline constexpr int64_t kForwardBand = 128 << 10, kBackwardBand = 176 << 10;
inline constexpr int64_t kMostPixels = 512;

template <typename T>
MTLKIT_INLINE T total(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

template <typename T>
MTLKIT_INLINE Vec<T> relu(Vec<T> v) {
  return v < 0 ? Vec<T>{} : v;  // NaN stays
}

template <typename T>
MTLKIT_INLINE T exp_of(T x) {
  return exp2(splat(x) * kLog2E<T>)[0];
}

// Lane i of the result is set if first + i is in [from, to).
template <typename T>
MTLKIT_INLINE Mask<T> lanes_within(int64_t first, int64_t from, int64_t to) {
  Mask<T> mask;
  for (int i = 0; i < kLanes<T>; ++i) mask[i] = first + i >= from && first + i < to ? -1 : 0;
  return mask;
}

// Allocates aligned pieces of one block of memory; without memory it only adds up their sizes.
template <typename T>
class Arena {
 public:
  explicit Arena(T* memory = nullptr) : memory_(memory) {}

  T* take(int64_t count) {
    T* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(count, 64 / sizeof(T));
    return piece;
  }
  Vec<T>* take_vectors(int64_t count) { return reinterpret_cast<Vec<T>*>(take(count * kLanes<T>)); }
  int64_t used() const { return used_; }

 private:
  T* memory_;
  int64_t used_ = 0;
};

// The division of the map into items and bands, computed once per call.
template <typename T>
struct Cut {
  int64_t channels, pixels, width, halo, band, pitch, start;
  int64_t splits, items, chunk;
  int threads;

  Cut(const InteractionReduceForward& p, bool energy, int64_t bytes)
      : channels(p.shape.channels), pixels(p.shape.pixels()), width(p.shape.width), halo(energy ? width : 0) {
    constexpr int64_t step = kColumns * kLanes<T>;
    const int64_t fitting = bytes / static_cast<int64_t>(channels * sizeof(T)) / step * step;
    const int64_t longest =
        min(max(min(max(fitting, 4 * kLanes<T>), kMostPixels), round_up(3 * halo, step)), round_up(pixels, step));
    start = round_up(halo, kLanes<T>);
    splits = split(p.shape.batch, int64_t{1} << 30, p.threads);
    splits = min(splits, ceil_div(pixels, step));
    chunk = round_up(ceil_div(pixels, splits), step);
    splits = ceil_div(pixels, chunk);
    items = p.shape.batch * splits;
    band = round_up(ceil_div(chunk, ceil_div(chunk, longest)), kLanes<T>);  // bands of equal length
    pitch = pitch_of<T>(start + round_up(band, kLanes<T>) + halo + kLanes<T>);
    threads = static_cast<int>(max(1, min(p.threads, items)));
  }

  // The band after the one that starts at pixel `first` of an item; after the last, the first band of the next item.
  Ahead behind(const Tensor<3>& map, int64_t item, int64_t first) const {
    first += band;
    if (first >= last(item)) {
      if (++item == items) return Ahead();
      first = this->first(item);
    }
    return band_of(map, item, first);
  }

  Ahead band_of(const Tensor<3>& map, int64_t item, int64_t first) const {
    return Ahead(at(map, image(item) * map.stride[0] + first * map.stride[2]), map.dtype, map.stride[1], map.stride[2],
                 channels, min(band, last(item) - first));
  }

  int64_t image(int64_t item) const { return item / splits; }
  int64_t first(int64_t item) const { return item % splits * chunk; }
  int64_t last(int64_t item) const { return min(pixels, first(item) + chunk); }

  // Calls f(pixel, place, count) for runs of pixels that cover [first - halo, first + count + halo); places count from
  // `first`. Outside the image, the halo repeats the nearest row.
  template <typename F>
  void each_run(int64_t first, int64_t count, F f) const {
    for (int64_t l = first - halo; l < first + count + halo;) {
      const int64_t inside = l < 0 ? l + width : l >= pixels ? l - width : l;
      const int64_t end = l < 0               ? 0
                          : l < first         ? first
                          : l < first + count ? first + count
                          : l < pixels        ? pixels
                                              : l + width;
      const int64_t some = min(end, first + count + halo) - l;
      f(inside, l - first, some);
      l += some;
    }
  }

  // Fills a panel of (C, pixels) with a band and its halo.
  void pack_band(const Tensor<3>& map, int64_t b, int64_t first, int64_t count, T* panel, bool ahead) const {
    each_run(first, count, [&](int64_t pixel, int64_t place, int64_t some) {
      pack<T>(at(map, b * map.stride[0] + pixel * map.stride[2]), map.dtype, map.stride[1], map.stride[2], channels,
              some, panel + start + place, pitch, ahead);
    });
  }
};

// The projection in the type of computation: rows of weight and bias, padded with zeros to whole blocks of rows. A
// weight that needs neither padding nor conversion is read in place: at 14 x 14 it is as large as a map.
template <typename T>
struct Projection {
  int64_t projected, rows, pitch;
  bool in_place;
  Scratch<T> memory;
  const T* weight;
  T *bias, *attn;

  explicit Projection(const InteractionReduceForward& p)
      : projected(p.weight ? p.shape.projected : 0),
        rows(round_up(projected, kRows)),
        pitch(pitch_of<T>(p.shape.channels)),
        in_place(p.weight && p.weight.dtype == dtype_of<T> && p.weight.stride[0] == p.shape.channels &&
                 p.weight.stride[1] == 1 && projected == rows && p.shape.channels % kLanes<T> == 0),
        memory((in_place ? 0 : rows * pitch) + round_up(rows, kLanes<T>) + pitch) {
    if (!ok()) return;
    T* const packed = memory.get();
    const int64_t size = in_place ? 0 : rows * pitch;
    if (in_place) pitch = p.shape.channels;
    weight = in_place ? static_cast<const T*>(p.weight.data) : packed;
    bias = packed + size;
    attn = bias + round_up(rows, kLanes<T>);
    std::fill(packed, attn + pitch, T{0});
    if (!projected) return;
    if (!in_place) {
      pack<T>(p.weight.data, p.weight.dtype, p.weight.stride[0], p.weight.stride[1], projected, p.shape.channels,
              packed, pitch);
    }
    pack<T>(p.bias.data, p.bias.dtype, 0, p.bias.stride[0], 1, projected, bias, 0);
    if (p.attn) pack<T>(p.attn.data, p.attn.dtype, 0, p.attn.stride[0], 1, p.shape.channels, attn, 0);
  }

  bool ok() const { return memory.ok(); }
};

// The index of the projection's signs, from pixel `first` of an image on.
template <typename T>
int64_t signs_at(const Cut<T>& cut, const Projection<T>& projection, int64_t b, int64_t first) {
  return b * projection.rows * ceil_div(cut.pixels, kLanes<T>) + first / kLanes<T>;
}

// logits[l] = attn . x_l for the pixels of a band, in whole vectors.
template <typename T>
void attention(const T* attn, const T* panel, int64_t pitch, int64_t channels, int64_t vectors, T* logits) {
  constexpr int64_t kSide = 4;  // independent sums, which hide each other's latency
  for (int64_t j = 0; j < vectors; j += kSide) {
    Vec<T> sum[kSide] = {};
    const int64_t some = min(kSide, vectors - j);
    for (int64_t c = 0; c < channels; ++c) {
      const T* row = panel + c * pitch + j * kLanes<T>;
      if (some == kSide) {
        for (int64_t i = 0; i < kSide; ++i) sum[i] += attn[c] * load(row + i * kLanes<T>);
      } else {
        for (int64_t i = 0; i < some; ++i) sum[i] += attn[c] * load(row + i * kLanes<T>);
      }
    }
    for (int64_t i = 0; i < some; ++i) store(logits + (j + i) * kLanes<T>, sum[i]);
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
