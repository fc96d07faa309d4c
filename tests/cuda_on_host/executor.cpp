// The executor behind cuda_on_host.h.
//
// A fiber is a stack with a jump buffer. makecontext starts each fiber once; afterwards _setjmp and _longjmp switch
// between fibers, because they make no system call.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_host.h"

Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kMaxShared = 227 << 10, kMaxGrid = INT32_MAX;
constexpr size_t kStack = 256 << 10;  // the page at its end is inaccessible
constexpr size_t kGuard = 4 << 10;    // bytes on either side of the shared memory that must not change
constexpr int kPoison = 0xff;         // four such bytes are a NaN in float32, two are a NaN in both 16-bit types

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  jmp_buf context;
  ucontext_t start;
  bool started = false;
  State state;
  int line;  // where it waits
  float value;
  int lane_mask;
  std::vector<Copy> copies;  // started but not waited for
};

jmp_buf scheduler;
Thread* threads = nullptr;
char* stacks = nullptr;
unsigned current;
const std::function<void()>* body;
std::string error;
int left_out = 0;
int64_t launched = 0;
std::mt19937_64 random_bits(0);
alignas(128) char shared_memory[kGuard + kMaxShared + kGuard + 128];
char* const shared_start = shared_memory + kGuard + 16;  // aligned to exactly 16 bytes, as on a GPU
unsigned shared_size, shared_limit = kMaxShared;

// ---- Fibers ---------------------------------------------------------------------------------------------------------

void pause() {
  if (!_setjmp(threads[current].context)) _longjmp(scheduler, 1);
}

[[noreturn]] void fiber() {
  for (;;) {
    (*body)();
    threads[current].state = State::kDone;
    pause();
  }
}

void resume(unsigned thread) {
  Thread& t = threads[thread];
  current = thread;
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (t.started) _longjmp(t.context, 1);
  t.started = true;
  setcontext(&t.start);
}

// Resets all fibers, including those that an error stopped in the middle of a kernel.
void renew_fibers() {
  if (!threads) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory =
        mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
    for (unsigned i = 0; i < kMaxThreads; ++i) mprotect(stacks + i * kStack, page, PROT_NONE);
    threads = new Thread[kMaxThreads];
  }
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    Thread& t = threads[i];
    getcontext(&t.start);
    t.start.uc_stack.ss_sp = stacks + i * kStack;
    t.start.uc_stack.ss_size = kStack;
    t.start.uc_link = nullptr;
    makecontext(&t.start, fiber, 0);
    t.started = false;
  }
}

// ---- Errors ---------------------------------------------------------------------------------------------------------

std::string place(unsigned thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(blockIdx.x);
}

std::string whereabouts(unsigned thread) {
  const Thread& t = threads[thread];
  const std::string line = std::to_string(t.line);
  switch (t.state) {
    case State::kAtBarrier:
      return place(thread) + " waits at the barrier of line " + line;
    case State::kAtShuffle:
      return place(thread) + " waits at the shuffle of line " + line + " with lane mask " + std::to_string(t.lane_mask);
    default:
      return place(thread) + " has ended";
  }
}

// Reports an error of the running thread and returns to the scheduler for good.
void fail(const std::string& what) {
  error = place(current) + ": " + what;
  _longjmp(scheduler, 1);
}

// ---- Scheduling -----------------------------------------------------------------------------------------------------

bool same_stop(const Thread& a, const Thread& b) {
  if (a.state != b.state || a.state == State::kDone) return a.state == b.state;
  return a.line == b.line && (a.state == State::kAtBarrier || a.lane_mask == b.lane_mask);
}

// Whether threads first to last - 1 all wait at the same shuffle or barrier; if not, `other` is a thread that is not
// where the first one is.
bool together(unsigned first, unsigned last, unsigned* other) {
  for (unsigned i = first + 1; i < last; ++i) {
    if (!same_stop(threads[first], threads[i])) return *other = i, false;
  }
  return true;
}

void exchange(unsigned first, unsigned last) {
  float values[kWarp];
  for (unsigned i = first; i < last; ++i) values[i - first] = threads[i].value;
  for (unsigned i = first; i < last; ++i) {
    const unsigned from = (i - first) ^ static_cast<unsigned>(threads[i].lane_mask);
    if (from >= last - first) {
      error = place(i) + ": reads lane " + std::to_string(from) + " in a shuffle, which its warp does not have";
      return;
    }
    threads[i].value = values[from];
    threads[i].state = State::kReady;
  }
}

// Runs a warp until its lanes have reached a barrier, have ended, or cannot continue.
void run_warp(unsigned first, unsigned last) {
  unsigned lanes[kWarp], other;
  for (unsigned i = first; i < last; ++i) lanes[i - first] = i;
  std::shuffle(lanes, lanes + (last - first), random_bits);
  for (;;) {
    for (unsigned i = 0; i < last - first; ++i) {
      if (threads[lanes[i]].state != State::kReady) continue;
      resume(lanes[i]);
      if (!error.empty()) return;
    }
    if (threads[first].state != State::kAtShuffle || !together(first, last, &other)) return;
    exchange(first, last);
    if (!error.empty()) return;
  }
}

void run_block(unsigned block) {
  std::memset(shared_memory, kPoison, static_cast<size_t>(shared_start - shared_memory) + shared_size + kGuard);
  for (unsigned i = 0; i < block; ++i) {
    threads[i].state = State::kReady;
    threads[i].copies.clear();
  }
  std::vector<unsigned> warps((block + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i * kWarp;
  for (;;) {
    std::shuffle(warps.begin(), warps.end(), random_bits);
    for (const unsigned first : warps) {
      run_warp(first, std::min(first + kWarp, block));
      if (!error.empty()) return;
    }
    unsigned other;
    if (!together(0, block, &other)) {
      error = whereabouts(0) + ", and " + whereabouts(other);
      return;
    }
    if (threads[0].state == State::kDone) return;
    for (unsigned i = 0; i < block; ++i) threads[i].state = State::kReady;
  }
}

// The number of bytes from `start` on that are still poison.
size_t untouched(const char* start, size_t count) {
  const auto touched = [](const char& c) { return static_cast<unsigned char>(c) != kPoison; };
  const bool none = !touched(start[0]) && std::memcmp(start, start + 1, count - 1) == 0;
  return none ? count : static_cast<size_t>(std::find_if(start, start + count, touched) - start);
}

void check_guards() {
  const size_t before = static_cast<size_t>(shared_start - shared_memory);
  const size_t behind = untouched(shared_start + shared_size, kGuard);
  if (untouched(shared_memory, before) < before) {
    error = "block " + std::to_string(blockIdx.x) + " wrote in front of its shared memory";
  } else if (behind < kGuard) {
    error = "block " + std::to_string(blockIdx.x) + " wrote to byte " + std::to_string(shared_size + behind) +
            " of its " + std::to_string(shared_size) + " bytes of shared memory";
  }
}

}  // namespace

int run(unsigned grid, unsigned block, unsigned shared_bytes, const std::function<void()>& thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (grid < 1 || grid > kMaxGrid || block < 1 || block > kMaxThreads || shared_bytes > shared_limit) {
    error = "no GPU runs " + std::to_string(grid) + " blocks of " + std::to_string(block) + " threads with " +
            std::to_string(shared_bytes) + " bytes of shared memory";
    return kInvalidConfiguration;
  }
  if (!threads || !error.empty()) renew_fibers();
  error.clear();
  ++launched;
  body = &thread;
  shared_size = shared_bytes;
  gridDim = {grid, 1, 1};
  blockDim = {block, 1, 1};
  std::vector<unsigned> blocks(grid);
  for (unsigned i = 0; i < grid; ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  for (const unsigned b : blocks) {
    blockIdx.x = b;
    run_block(block);
    if (error.empty()) check_guards();
    if (!error.empty()) return kLaunchFailure;
  }
  return kSuccess;
}

const char* last_error() { return error.c_str(); }

int64_t launches() { return launched; }

void seed(uint64_t value) { random_bits.seed(value); }

void limit_shared(unsigned bytes) { shared_limit = std::min(bytes, kMaxShared); }

void leave_out(int line) { left_out = line; }

// ---- For kernels ----------------------------------------------------------------------------------------------------

void* dynamic_shared() { return shared_start; }

void block_sync(int line) {
  if (line == left_out) return;
  threads[current].state = State::kAtBarrier;
  threads[current].line = line;
  pause();
}

float shuffle_xor(float value, int lane_mask, int line) {
  Thread& t = threads[current];
  t.state = State::kAtShuffle;
  t.line = line;
  t.value = value;
  t.lane_mask = lane_mask;
  pause();
  return t.value;
}

void check_aligned(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes at an address that is no multiple of it");
  }
}

void copy_async(void* to, const void* from, int bytes) {
  check_aligned(to, bytes);
  check_aligned(from, bytes);
  const char* const target = static_cast<char*>(to);
  if (target < shared_start || target + bytes > shared_start + shared_size) {
    fail("an asynchronous copy to elsewhere than the block's shared memory");
  }
  std::memset(to, kPoison, static_cast<size_t>(bytes));
  threads[current].copies.push_back({to, from, bytes});
}

void copy_async_commit() {}

void copy_async_wait(int line) {
  if (line == left_out) return;
  for (const Copy& copy : threads[current].copies) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  threads[current].copies.clear();
}

}  // namespace cuda_on_host
