#include "cpu/gated_residual.h"

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

// Placed before a loop whose iterations are independent.
#if defined(__clang__)
#define MTLKIT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define MTLKIT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int64_t kPixels = 1024;  // per block, so that its values per pixel fit in the first-level cache
constexpr int64_t kEdge = kSpatialTaps / 2;

float logistic(float x) { return 1 / (1 + std::exp(-x)); }

// Computes h for pixels [first, last) of a channel of an image.
struct Mix {
  const float *a, *b, *c;
  float wa, wb, wc, bias;

  Mix(const GatedResidualForward& p, int64_t image, int64_t channel) {
    const int64_t at = (image * p.channels + channel) * p.height * p.width;
    const float* w = p.weights + image * kMostMaps;
    a = p.maps[0] + at, b = p.maps[1] + at, c = p.maps[2] + at;
    wa = w[0], wb = w[1], wc = w[2], bias = p.bias[channel];
  }
  MTLKIT_INLINE float at(int64_t l) const { return a[l] * wa + b[l] * wb + c[l] * wc + bias; }
};

void add_without_gates(const GatedResidualForward& p) {
  const int64_t L = p.height * p.width, planes = p.batch * p.channels, blocks = ceil_div(L, kPixels);
  on_threads(min(p.threads, planes * blocks), [&](int thread, int team) {
    const Share work = share(planes * blocks, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      const int64_t plane = i / blocks, first = i % blocks * kPixels, last = min(L, first + kPixels);
      const Mix h(p, plane / p.channels, plane % p.channels);
      const float* residual = p.residual + plane * L;
      float* y = p.y + plane * L;
      MTLKIT_INDEPENDENT
      for (int64_t l = first; l < last; ++l) {
        const float sum = h.at(l) + residual[l];
        y[l] = sum < 0 ? 0 : sum;
      }
    }
  });
}

// Writes h to y, the sum of each channel over every block, (B, blocks, C), and the maximum and mean over the channels
// of each pixel, (B, 2, H + 6, W + 6), with a border of zeros.
void gather(const GatedResidualForward& p, float* sums, float* framed) {
  const int64_t C = p.channels, H = p.height, W = p.width, L = H * W, blocks = ceil_div(L, kPixels);
  const int64_t wide = W + 2 * kEdge, frame = (H + 2 * kEdge) * wide;
  on_threads(min(p.threads, p.batch * blocks), [&](int thread, int team) {
    const Share work = share(p.batch * blocks, team, thread);
    float most[kPixels], total[kPixels];
    for (int64_t i = work.first; i < work.last; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kPixels, count = min(kPixels, L - first);
      for (int64_t c = 0; c < C; ++c) {
        const Mix h(p, b, c);
        float* y = p.y + (b * C + c) * L + first;
        FloatVec lanes{};
        int64_t l = 0;
        for (; l + kLanes<float> <= count; l += kLanes<float>) {
          const int64_t at = first + l;
          const FloatVec v = load(h.a + at) * h.wa + load(h.b + at) * h.wb + load(h.c + at) * h.wc + h.bias;
          store(y + l, v);
          lanes += v;
          const FloatVec m = load(most + l), s = load(total + l);
          store(most + l, c ? (v > m ? v : m) : v);
          store(total + l, c ? s + v : v);
        }
        float sum = 0;
        for (; l < count; ++l) {
          const float v = h.at(first + l);
          y[l] = v;
          sum += v;
          most[l] = c ? (v > most[l] ? v : most[l]) : v;
          total[l] = c ? total[l] + v : v;
        }
        for (int64_t k = 0; k < kLanes<float>; ++k) sum += lanes[k];
        sums[i * C + c] = sum;
      }
      float* out = framed + b * 2 * frame;
      for (int64_t l = 0; l < count; ++l) {
        const int64_t at = ((first + l) / W + kEdge) * wide + (first + l) % W + kEdge;
        out[at] = most[l];
        out[frame + at] = total[l] / static_cast<float>(C);
      }
    }
  });
}

// Computes the gate of each channel, (B, C), from the sums of the blocks.
void gate_channels(const GatedResidualForward& p, const float* sums, float* means, float* hidden, float* gates) {
  const int64_t C = p.channels, L = p.height * p.width, blocks = ceil_div(L, kPixels);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t c = 0; c < C; ++c) means[c] = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      for (int64_t c = 0; c < C; ++c) means[c] += sums[(b * blocks + k) * C + c];
    }
    for (int64_t c = 0; c < C; ++c) means[c] /= static_cast<float>(L);
    for (int64_t j = 0; j < p.hidden; ++j) {
      FloatVec lanes{};
      const float* w = p.fc1_weight + j * C;
      int64_t c = 0;
      for (; c + kLanes<float> <= C; c += kLanes<float>) lanes += load(w + c) * load(means + c);
      float sum = p.fc1_bias[j];
      for (; c < C; ++c) sum += w[c] * means[c];
      for (int64_t k = 0; k < kLanes<float>; ++k) sum += lanes[k];
      hidden[j] = sum < 0 ? 0 : sum;
    }
    for (int64_t c = 0; c < C; ++c) {
      float sum = p.fc2_bias[c];
      for (int64_t j = 0; j < p.hidden; ++j) sum += p.fc2_weight[c * p.hidden + j] * hidden[j];
      gates[b * C + c] = logistic(sum);
    }
  }
}

// Computes the gates of a row of pixels.
void gate_pixels(const GatedResidualForward& p, const float* framed, int64_t row, float* gates) {
  const int64_t W = p.width, wide = W + 2 * kEdge, frame = (p.height + 2 * kEdge) * wide;
  for (int64_t w = 0; w < W; ++w) gates[w] = p.spatial_bias[0];
  for (int64_t map = 0; map < 2; ++map) {
    for (int64_t i = 0; i < kSpatialTaps; ++i) {
      const float* x = framed + map * frame + (row + i) * wide;
      const float* taps = p.spatial_weight + (map * kSpatialTaps + i) * kSpatialTaps;
      MTLKIT_INDEPENDENT
      for (int64_t w = 0; w < W; ++w) {
        float sum = gates[w];
        for (int64_t j = 0; j < kSpatialTaps; ++j) sum += x[w + j] * taps[j];
        gates[w] = sum;
      }
    }
  }
  for (int64_t w = 0; w < W; ++w) gates[w] = logistic(gates[w]);
}

void apply_gates(const GatedResidualForward& p, const float* framed, const float* channels, float* pixels) {
  const int64_t C = p.channels, H = p.height, W = p.width, L = H * W;
  const int64_t frame = 2 * (H + 2 * kEdge) * (W + 2 * kEdge);
  const int64_t some = max(kPixels / W, 1), blocks = ceil_div(H, some);  // some: rows per block
  on_threads(min(p.threads, p.batch * blocks), [&](int thread, int team) {
    const Share work = share(p.batch * blocks, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      const int64_t b = i / blocks, top = i % blocks * some, bottom = min(H, top + some);
      const float* gates = pixels + b * L;
      for (int64_t row = top; row < bottom; ++row) gate_pixels(p, framed + b * frame, row, pixels + b * L + row * W);
      for (int64_t c = 0; c < C; ++c) {
        const float* residual = p.residual + (b * C + c) * L;
        float* y = p.y + (b * C + c) * L;
        const float gate = channels[b * C + c];
        MTLKIT_INDEPENDENT
        for (int64_t l = top * W; l < bottom * W; ++l) {
          const float sum = y[l] * gate * gates[l] + residual[l];
          y[l] = sum < 0 ? 0 : sum;
        }
      }
    }
  });
}

}  // namespace

int gated_residual_forward(const GatedResidualForward& p) {
  if (p.hidden == 0) {
    add_without_gates(p);
    return kOk;
  }
  const int64_t B = p.batch, C = p.channels, L = p.height * p.width, blocks = ceil_div(L, kPixels);
  const int64_t framed = B * 2 * (p.height + 2 * kEdge) * (p.width + 2 * kEdge);
  Scratch<float> memory(framed + B * (blocks * C + C + L) + C + p.hidden);
  if (!memory.ok()) return kOutOfMemory;
  float *frame = memory.get(), *sums = frame + framed, *channels = sums + B * blocks * C, *pixels = channels + B * C;
  float *means = pixels + B * L, *hidden = means + C;
  for (int64_t i = 0; i < framed; ++i) frame[i] = 0;
  gather(p, sums, frame);
  gate_channels(p, sums, means, hidden, channels);
  apply_gates(p, frame, channels, pixels);
  return kOk;
}

int interleave_forward(const InterleaveForward& p) {
  const int64_t rows = p.planes * p.height;
  on_threads(min(p.threads, rows), [&](int thread, int team) {
    const Share work = share(rows, team, thread);
    for (int64_t i = work.first; i < work.last; ++i) {
      const int64_t plane = i / p.height, row = i % p.height;
      const int64_t at = (plane * p.rows + row / 2) * p.columns, pairs = p.width / 2;
      const float *even = p.phases[2 * (row % 2)] + at, *odd = p.phases[2 * (row % 2) + 1] + at;
      float* y = p.y + i * p.width;
      MTLKIT_INDEPENDENT
      for (int64_t n = 0; n < pairs; ++n) {
        y[2 * n] = even[n];
        y[2 * n + 1] = odd[n];
      }
      if (p.width % 2) y[p.width - 1] = even[pairs];
    }
  });
  return kOk;
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
