// Runs CUDA kernels on a CPU: what csrc/cuda/device.cuh asks for where MTLKIT_CUDA_ON_HOST is defined.
//
// Blocks run one after the other in shuffled order. The threads of a block are fibers: one runs until it meets others
// (a barrier, a shuffle) or ends, warps take turns in an order shuffled anew after each barrier, and so do the lanes of
// a warp. So whoever reads what another thread has not written yet, for want of a barrier, reads NaN: shared memory is
// filled with it before each block, as is the target of an asynchronous copy until its thread has waited for it.
//
// launch() answers with the number of a cudaError_t, and last_error() says what went wrong: barriers and shuffles that
// not all threads reach, writes around the shared memory, addresses that are not aligned, sizes beyond a GPU's.
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

// As cudaError_t counts them.
inline constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;

// Runs `thread` as every thread of `grid` blocks.
int run(unsigned grid, unsigned block, unsigned shared_bytes, const std::function<void()>& thread);

template <typename... Parameters, typename... Arguments>
int launch(unsigned grid, unsigned block, unsigned shared_bytes, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  return run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

// What the last launch that failed died of.
const char* last_error();

// How many kernels have been launched.
int64_t launches();

// Fixes the orders of all launches to come.
void seed(uint64_t value);

// The bytes of shared memory that a block of a launch to come may have.
void limit_shared(unsigned bytes);

// Leaves out the barriers and waits that stand in this line of a source, so that a test can see that they are missed;
// 0 for none.
void leave_out(int line);

// For kernels. `line` is where the call stands in the source: the threads that meet must all stand there.
void* dynamic_shared();
void block_sync(int line = __builtin_LINE());
float shuffle_xor(float value, int lane_mask, int line = __builtin_LINE());
void copy_async(void* to, const void* from, int bytes);
void copy_async_commit();
void copy_async_wait(int line = __builtin_LINE());
void check_aligned(const void* address, int bytes);

}  // namespace cuda_on_host
