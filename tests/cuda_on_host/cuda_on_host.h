// Runs CUDA kernels on a CPU: the functions that csrc/cuda/device.cuh uses if MTLKIT_CUDA_ON_HOST is defined.
//
// Blocks run one at a time in random order. The threads of a block are fibers: each runs until it waits for others (at
// a barrier or shuffle) or ends. Warps, and the lanes of a warp, take turns in an order that is shuffled again after
// each barrier. If a barrier is missing, a thread that reads a value before another thread has written it reads NaN:
// shared memory is filled with NaN before each block, and so is the target of an asynchronous copy until its thread has
// waited.
//
// launch() returns the number of a cudaError_t, and last_error() describes the error: barriers and shuffles that not
// all threads reach, writes next to the shared memory, misaligned addresses, sizes beyond a GPU's limits.
#pragma once

#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
  unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

// The values of cudaError_t.
inline constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;

// Runs `thread` for every thread of `grid` blocks.
int run(unsigned grid, unsigned block, unsigned shared_bytes, const std::function<void()>& thread);

template <typename... Parameters, typename... Arguments>
int launch(unsigned grid, unsigned block, unsigned shared_bytes, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  return run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

// The error of the last failed launch.
const char* last_error();

// The number of kernels launched so far.
int64_t launches();

// Seeds the execution orders of later launches.
void seed(uint64_t value);

// Sets the bytes of shared memory available to a block in later launches.
void limit_shared(unsigned bytes);

// Skips the barriers and waits in this line of a source, so that a test can check that this is detected; 0 for none.
void leave_out(int line);

// Called by kernels. `line` is the line of the call: all threads that synchronise must be at the same line.
void* dynamic_shared();
void block_sync(int line = __builtin_LINE());
float shuffle_xor(float value, int lane_mask, int line = __builtin_LINE());
void copy_async(void* to, const void* from, int bytes);
void copy_async_commit();
void copy_async_wait(int line = __builtin_LINE());
void check_aligned(const void* address, int bytes);

}  // namespace cuda_on_host
