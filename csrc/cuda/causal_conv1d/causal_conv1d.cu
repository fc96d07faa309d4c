// Depthwise causal convolution of a few taps, bias and SiLU, forward and backward (division among threads:
// causal_conv1d.h). Filters with fewer than kMaxWidth taps run as filters of kMaxWidth whose first taps are never used.
//
//   a = conv(x), recomputed      da = dy SiLU'(a)     dx[t - k] += tap[k] da[t]     dtap[k] += da[t] x[t - k]
#include "cuda/device.cuh"
#include "cuda/launchers.h"

namespace mtlkit::cuda {
namespace {

inline constexpr int kBefore = kMaxWidth - 1;

// The pack of channels and the run of a thread in its block. `across`: neighbouring threads have neighbouring channels,
// for contiguous channels; else neighbouring runs.
struct Place {
  int pack, column;

  __device__ explicit Place(bool across) {
    const int thread = static_cast<int>(threadIdx.x);
    pack = across ? thread % kRunPacks : thread / kRunColumns;
    column = across ? thread / kRunPacks : thread % kRunColumns;
  }
};

struct Run {
  int64_t sequence, first, end;  // tokens from `first` to `end` - 1

  __device__ Run(const CausalConv1d& p, const Runs& runs, int64_t index) : sequence(index / runs.count) {
    first = (index - sequence * runs.count) * runs.length;
    end = first + runs.length < p.shape.tokens ? first + runs.length : p.shape.tokens;
  }
};

template <typename T>
__device__ inline T* element_at(const Tensor<3>& t, int64_t sequence, int64_t channel, int64_t token) {
  return static_cast<T*>(t.data) + sequence * t.stride[0] + channel * t.stride[1] + token * t.stride[2];
}

// The last tokens of kCount channels, and how many tokens back the output of the last one reaches.
template <typename T, int kCount>
class Window {
 public:
  float values[kMaxWidth][kCount];  // of token t - k
  int reach;
  bool padding;  // token t

  // Starts before token `first`; the first call of next() moves to it.
  __device__ Window(const CausalConv1d& p, int64_t sequence, int64_t c, int64_t first)
      : at_(element_at<const T>(p.x, sequence, c, first)),
        token_stride_(p.x.stride[2]),
        seq_idx_(p.seq_idx ? p.seq_idx + sequence * p.shape.tokens : nullptr),
        token_(first),
        most_(static_cast<int>(p.shape.width) - 1) {
    reach = seq_idx_ ? -1 : most_;
    padding = false;
    for (int k = 0; k < kBefore; ++k) {
      const int64_t token = first - 1 - k;
      const auto pack =
          load_or_zero<kCount>(k < most_ && token >= 0 && c < p.shape.channels, at_ - (k + 1) * token_stride_);
      for (int i = 0; i < kCount; ++i) {
        values[k][i] = to_float(pack.values[i]);
        if (token < 0 && token >= -most_ && p.initial_states && c + i < p.shape.channels) {
          values[k][i] = p.initial_states[(sequence * p.shape.channels + c + i) * most_ + most_ + token];
        }
      }
      // reach of the token before the first
      if (seq_idx_ && reach == k - 1 && token >= 0 && (k == 0 || seq_idx_[token] == seq_idx_[token + 1])) reach = k;
    }
  }

  // Moves to the next token; `there` is false beyond the end.
  __device__ void next(bool there) {
    for (int k = kBefore; k > 0; --k) {
      for (int i = 0; i < kCount; ++i) values[k][i] = values[k - 1][i];
    }
    const auto pack = load_or_zero<kCount>(there, at_);
    for (int i = 0; i < kCount; ++i) values[0][i] = to_float(pack.values[i]);
    if (seq_idx_ && there) {
      const bool goes_on = token_ > 0 && seq_idx_[token_] == seq_idx_[token_ - 1];
      reach = goes_on ? (reach < most_ ? reach + 1 : most_) : 0;
      padding = seq_idx_[token_] < 0;
    }
    at_ += token_stride_;
    ++token_;
  }

 private:
  const T* at_;
  int64_t token_stride_;
  const int32_t* seq_idx_;
  int64_t token_;
  int most_;
};

// The taps and the bias of kCount channels from `c` on, the current token's tap first; zeros for channels beyond the
// last.
template <int kCount>
struct Filter {
  float taps[kMaxWidth][kCount], bias[kCount];

  __device__ Filter(const CausalConv1d& p, int64_t c) {
    const int width = static_cast<int>(p.shape.width);
    for (int i = 0; i < kCount; ++i) {
      const bool there = c + i < p.shape.channels;
      for (int k = 0; k < kMaxWidth; ++k) {
        taps[k][i] = there && k < width ? p.weight[(c + i) * width + width - 1 - k] : 0.0f;
      }
      bias[i] = there && p.bias ? p.bias[c + i] : 0.0f;
    }
  }

  template <typename T>
  __device__ float sum(const Window<T, kCount>& window, int i) const {
    float a = bias[i];
    for (int k = 0; k < kMaxWidth; ++k) a += k <= window.reach ? taps[k][i] * window.values[k][i] : 0.0f;
    return a;
  }
};

// T: type of x and y. kCount: channels per thread; more than one only if packs<kCount>() holds for x and y.
template <typename T, int kCount>
__global__ void __launch_bounds__(kRunThreads, 2)
    causal_conv1d_fwd_kernel(const CausalConv1dForward params, const Runs runs, const bool across) {
  const CausalConv1d& p = params.conv;
  const Place place(across);
  const int64_t chunks = (p.shape.channels + kRunPacks * kCount - 1) / (kRunPacks * kCount);
  const int64_t groups = gridDim.x / chunks;
  const int64_t chunk = across ? blockIdx.x % chunks : blockIdx.x / groups;
  const int64_t group = across ? blockIdx.x / chunks : blockIdx.x % groups;
  const int64_t c = (chunk * kRunPacks + place.pack) * kCount, index = group * kRunColumns + place.column;
  if (c >= p.shape.channels || index >= p.shape.batch * runs.count) return;

  const Run run(p, runs, index);
  const Filter<kCount> filter(p, c);
  Window<T, kCount> window(p, run.sequence, c, run.first);
  T* y = element_at<T>(params.y, run.sequence, c, run.first);
  const int tokens = static_cast<int>(run.end - run.first);
#pragma unroll 4
  for (int step = 0; step < tokens; ++step) {
    window.next(true);
    Pack<T, kCount> out;
    for (int i = 0; i < kCount; ++i) {
      const float a = filter.sum(window, i);
      out.values[i] = from_float<T>(window.padding ? 0.0f : p.silu ? silu(a) : a);
    }
    store(y, out);
    y += params.y.stride[2];
  }
}

template <int kCount>
constexpr unsigned shared_bytes() {
  return kRunSums * kRunThreads * sizeof(float);
}

// T: type of x, dy and dx. kCount: as in forward, for all three. A thread continues past the end of its run over the
// tokens whose outputs depend on the run's last tokens.
template <typename T, int kCount>
__global__ void __launch_bounds__(kRunThreads, 2)
    causal_conv1d_bwd_kernel(const CausalConv1dBackward params, const Runs runs, const bool across) {
  const CausalConv1d& p = params.conv;
  const Place place(across);
  const int64_t chunk = blockIdx.x / params.parts, part = blockIdx.x % params.parts;
  const int64_t c = (chunk * kRunPacks + place.pack) * kCount, columns = p.shape.batch * runs.count;
  const int before = static_cast<int>(p.shape.width) - 1;
  const Filter<kCount> filter(p, c);
  float dtaps[kMaxWidth][kCount] = {}, dbias[kCount] = {};

  for (int64_t group = part; group * kRunColumns < columns; group += params.parts) {
    const int64_t index = group * kRunColumns + place.column;
    if (c >= p.shape.channels || index >= columns) break;
    const Run run(p, runs, index);
    Window<T, kCount> window(p, run.sequence, c, run.first);
    const T* dy = element_at<const T>(params.dy, run.sequence, c, run.first);
    T* dx = element_at<T>(params.dx, run.sequence, c, run.first);
    float sums[kMaxWidth][kCount] = {};  // of token t - k
#pragma unroll 2
    for (int64_t token = run.first; token < run.end + kBefore; ++token) {
      const bool there = token < p.shape.tokens, own = token < run.end;
      window.next(there);
      const auto gradient = load_or_zero<kCount>(there, dy);
      dy += params.dy.stride[2];
      const int64_t done = token - kBefore;
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        float da = there && !window.padding ? to_float(gradient.values[i]) : 0.0f;
        if (p.silu && there) {
          const float a = filter.sum(window, i), s = sigmoid(a), slope = s * (1.0f + a * (1.0f - s));
          da = window.padding ? 0.0f : da * slope;
        }
        for (int k = 0; k < kMaxWidth; ++k) {
          if (!there || k > window.reach) continue;
          sums[k][i] += filter.taps[k][i] * da;
          if (own) dtaps[k][i] += da * window.values[k][i];
        }
        if (own) dbias[i] += da;
        out.values[i] = from_float<T>(sums[kBefore][i]);
        if (done < 0 && done >= -before && params.dinitial_states && c + i < p.shape.channels) {
          params.dinitial_states[(run.sequence * p.shape.channels + c + i) * before + before + done] = sums[kBefore][i];
        }
        for (int k = kBefore; k > 0; --k) sums[k][i] = sums[k - 1][i];
        sums[0][i] = 0.0f;
      }
      if (done >= run.first) {
        store(dx, out);
        dx += params.dx.stride[2];
      }
    }
  }

  // For one of the thread's channels at a time: each run stores its sums, then a few threads add over the runs.
  float* const gathered = reinterpret_cast<float*>(dynamic_shared());  // (5, runs, packs)
  for (int i = 0; i < kCount; ++i) {
    if (i > 0) block_sync();
    for (int k = 0; k < kRunSums; ++k) {
      gathered[(k * kRunColumns + place.column) * kRunPacks + place.pack] =
          k < kMaxWidth ? dtaps[k % kMaxWidth][i] : dbias[i];
    }
    block_sync();
    const int sum = threadIdx.x / kRunPacks, pack = threadIdx.x % kRunPacks;
    const int64_t channel = (chunk * kRunPacks + pack) * kCount + i;
    if (sum < kRunSums && channel < p.shape.channels) {
      float total = 0.0f;
      for (int column = 0; column < kRunColumns; ++column) {
        total += gathered[(sum * kRunColumns + column) * kRunPacks + pack];
      }
      params.partials[(part * p.shape.channels + channel) * kRunSums + sum] = total;
    }
  }
}

// Whether kCount neighbouring channels of every token can be loaded and stored at once.
template <int kCount>
bool packs(const CausalConv1dShape& shape, const Tensor<3>& t) {
  return shape.channels % kCount == 0 && t.stride[1] == 1 &&
         reinterpret_cast<uintptr_t>(t.data) % (kCount * size_of(t.dtype)) == 0 && t.stride[0] % kCount == 0 &&
         t.stride[2] % kCount == 0;
}

bool fits(int64_t blocks) { return blocks <= INT32_MAX; }

template <typename T, int kCount>
int launch(const CausalConv1dForward& params, void* stream) {
  const CausalConv1d& p = params.conv;
  const bool across = p.x.stride[1] == 1;
  const Runs runs(p.shape.tokens, across ? kChannelsInside : kTokensInside);
  const int64_t chunks = (p.shape.channels + kRunPacks * kCount - 1) / (kRunPacks * kCount);
  const int64_t blocks = chunks * ((p.shape.batch * runs.count + kRunColumns - 1) / kRunColumns);
  if (!fits(blocks)) return kInvalidValue;
  return launch_kernel(static_cast<unsigned>(blocks), kRunThreads, 0, stream, causal_conv1d_fwd_kernel<T, kCount>,
                       params, runs, across);
}

template <typename T, int kCount>
int launch(const CausalConv1dBackward& params, void* stream) {
  const CausalConv1d& p = params.conv;
  const bool across = p.x.stride[1] == 1;
  const Runs runs(p.shape.tokens, across ? kChannelsInsideBackward : kTokensInside);
  const int64_t chunks = (p.shape.channels + kRunPacks * kCount - 1) / (kRunPacks * kCount);
  if (!fits(chunks * params.parts)) return kInvalidValue;
  return launch_kernel(static_cast<unsigned>(chunks * params.parts), kRunThreads, shared_bytes<kCount>(), stream,
                       causal_conv1d_bwd_kernel<T, kCount>, params, runs, across);
}

}  // namespace

int launch_causal_conv1d_fwd(const CausalConv1dForward& params, void* stream) {
  constexpr int kCount = 4;
  const CausalConv1d& p = params.conv;
  return for_dtype(p.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool vector = packs<kCount>(p.shape, p.x) && packs<kCount>(p.shape, params.y);
    return vector ? launch<T, kCount>(params, stream) : launch<T, 1>(params, stream);
  });
}

int launch_causal_conv1d_bwd(const CausalConv1dBackward& params, void* stream) {
  constexpr int kCount = 2;
  const CausalConv1d& p = params.conv;
  return for_dtype(p.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool vector =
        packs<kCount>(p.shape, p.x) && packs<kCount>(p.shape, params.dy) && packs<kCount>(p.shape, params.dx);
    return vector ? launch<T, kCount>(params, stream) : launch<T, 1>(params, stream);
  });
}

}  // namespace mtlkit::cuda
