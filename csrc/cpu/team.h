// The threads of a call: those of the calling thread's pool if it has one, else those of the process's pool.
#pragma once

namespace mtlkit {

// The work of each thread of a team.
struct TeamWork {
  void (*call)(void* data, int thread, int threads);
  void* data;
};

// Runs the work on a team of at most `threads` threads, and returns when all have finished.
void run_team(int threads, TeamWork work);

// A pool of threads that belongs to the calling program.
class HostPool {
 public:
  virtual ~HostPool() = default;
  // Runs the work for thread indices 0 to threads - 1. They need not run at the same time or on different threads.
  virtual void run(int threads, TeamWork work) = 0;
};

// Makes the kernels that this thread calls use a pool, as long as the object lives.
class UsePool {
 public:
  explicit UsePool(HostPool& pool);
  ~UsePool();
  UsePool(const UsePool&) = delete;
  UsePool& operator=(const UsePool&) = delete;
};

// Sets the pool for calls from threads without their own pool; without it they run on the calling thread. Call it once,
// before any kernel.
void set_process_pool(HostPool& pool);

}  // namespace mtlkit
