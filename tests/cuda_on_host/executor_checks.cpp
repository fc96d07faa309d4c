// Small kernels, right and wrong, for test_executor.py: each takes the sizes of its launch and a buffer of floats.
#include <pybind11/pybind11.h>

#include "cuda/device.cuh"

namespace mtlkit::cuda {
namespace {

float* shared_floats() { return reinterpret_cast<float*>(dynamic_shared()); }

// Reverses the block's numbers through shared memory.
template <bool kBarrier>
void reverse(float* values) {
  float* const mine = values + int64_t{blockIdx.x} * blockDim.x;
  shared_floats()[threadIdx.x] = mine[threadIdx.x];
  if constexpr (kBarrier) block_sync();
  mine[threadIdx.x] = shared_floats()[blockDim.x - 1 - threadIdx.x];
}

// The same with asynchronous copies of 16 bytes; each thread copies its own four numbers.
template <bool kWait>
void copy(float* values) {
  float* const mine = values + (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
  float* const buffer = shared_floats() + threadIdx.x * 4;
  copy_async<16>(buffer, mine);
  copy_async_commit();
  if constexpr (kWait) copy_async_wait();
  for (int i = 0; i < 4; ++i) mine[i] = buffer[3 - i];
}

// Loads tile after tile into one buffer; without the second barrier, a warp may overwrite data that others still read.
template <bool kBarrier>
void stages(float* values) {
  float sum = 0.0f;
  for (int stage = 0; stage < 4; ++stage) {
    copy_async<4>(shared_floats() + threadIdx.x, values + stage * blockDim.x + threadIdx.x);
    copy_async_wait();
    block_sync();
    for (unsigned i = 0; i < blockDim.x; ++i) sum += shared_floats()[i];
    if constexpr (kBarrier) block_sync();
  }
  values[4 * blockDim.x + threadIdx.x] = sum;
}

void sum_of_warp(float* values) { values[threadIdx.x] = warp_sum(values[threadIdx.x]); }

template <typename T>
void narrow(float* values) {
  float& value = values[int64_t{blockIdx.x} * blockDim.x + threadIdx.x];
  value = to_float(from_float<T>(value));
}

void order(float* values) {
  values[blockIdx.x * blockDim.x + threadIdx.x] = values[gridDim.x * blockDim.x];
  values[gridDim.x * blockDim.x] += 1.0f;
}

void unset(float* values) { values[threadIdx.x] = shared_floats()[threadIdx.x]; }

void some_at_barrier(float*) {
  if (threadIdx.x < 40) block_sync();
}

void two_barriers(float*) {
  if (threadIdx.x < 32) {
    block_sync();
  } else {
    block_sync();
  }
}

void barrier_beside_shuffle(float* values) {
  if (threadIdx.x % 2) {
    block_sync();
  } else {
    values[0] = shuffle_xor(values[0], 2);
  }
}

void two_masks(float* values) { values[threadIdx.x] = shuffle_xor(0.0f, threadIdx.x < 8 ? 1 : 2); }

void one_lane_ends(float* values) {
  if (threadIdx.x != 5) values[threadIdx.x] = shuffle_xor(0.0f, 1);
}

void write_past(float*) { dynamic_shared()[17 * 4] = 1; }
void write_before(float*) { dynamic_shared()[-1] = 1; }
void load_askew(float* values) { values[0] = load<4>(values + 1).values[0]; }
void copy_askew(float* values) { copy_async<8>(dynamic_shared() + 4, values); }
void copy_elsewhere(float* values) { copy_async<4>(values, values + 1); }

}  // namespace
}  // namespace mtlkit::cuda

PYBIND11_MODULE(executor_checks, m) {
  namespace py = pybind11;
  using namespace mtlkit::cuda;
  const auto define = [&](const char* name, void (*kernel)(float*)) {
    m.def(name, [kernel](unsigned grid, unsigned block, unsigned shared_bytes, uintptr_t values) {
      return launch_kernel(grid, block, shared_bytes, nullptr, kernel, reinterpret_cast<float*>(values));
    });
  };
  define("reverse", reverse<true>);
  define("reverse_without_barrier", reverse<false>);
  define("copy", copy<true>);
  define("copy_without_wait", copy<false>);
  define("stages", stages<true>);
  define("stages_without_barrier", stages<false>);
  define("sum_of_warp", sum_of_warp);
  define("narrow_bfloat16", narrow<bf16>);
  define("narrow_float16", narrow<f16>);
  define("order", order);
  define("unset", unset);
  define("some_at_barrier", some_at_barrier);
  define("two_barriers", two_barriers);
  define("barrier_beside_shuffle", barrier_beside_shuffle);
  define("two_masks", two_masks);
  define("one_lane_ends", one_lane_ends);
  define("write_past", write_past);
  define("write_before", write_before);
  define("load_askew", load_askew);
  define("copy_askew", copy_askew);
  define("copy_elsewhere", copy_elsewhere);
  m.def("last_error", &cuda_on_host::last_error);
  m.def("seed", &cuda_on_host::seed);
}
