// The threads of a call: those of the pool that the calling thread was handed, else of the process's pool.
#pragma once

namespace mtlkit {

// What each thread of a team does.
struct TeamWork {
  void (*call)(void* data, int thread, int threads);
  void* data;
};

// Runs the work for every thread of a team of at most `threads`, and returns when all is done.
void run_team(int threads, TeamWork work);

// A pool of threads of the program that calls kernels.
class HostPool {
 public:
  virtual ~HostPool() = default;
  // Runs the work for each of so many threads. They need not run at once, nor each on a thread of its own.
  virtual void run(int threads, TeamWork work) = 0;
};

// Hands a pool to the kernels that this thread calls while the object lives.
class UsePool {
 public:
  explicit UsePool(HostPool& pool);
  ~UsePool();
  UsePool(const UsePool&) = delete;
  UsePool& operator=(const UsePool&) = delete;
};

// The pool of calls from threads without one, for good; without it they run on the calling thread. Set before any call.
void set_process_pool(HostPool& pool);

}  // namespace mtlkit
