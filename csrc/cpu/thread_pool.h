// A pool of threads for programs that have none.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/team.h"

namespace mtlkit {

// Threads that wait between calls. A call that finds the pool busy does all its work on the calling thread.
class ThreadPool : public HostPool {
 public:
  // The calling thread counts as one; there are fewer if the system cannot start more.
  explicit ThreadPool(int threads);
  ~ThreadPool() override;
  int threads() const { return static_cast<int>(others_.size()) + 1; }
  void run(int threads, TeamWork work) override;

 private:
  void take_shares(std::unique_lock<std::mutex>& lock);
  void wait_for_work();

  std::mutex call_, state_;  // call_ is held during a call; state_ guards the following members
  std::condition_variable begin_, end_;
  TeamWork work_{};
  int shares_ = 0, next_ = 0, left_ = 0;  // of the call: all, the next to run, and the unfinished
  bool closing_ = false;
  std::vector<std::thread> others_;
};

}  // namespace mtlkit
