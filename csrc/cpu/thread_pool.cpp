#include "cpu/thread_pool.h"

#include <system_error>

namespace mtlkit {

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) others_.emplace_back([this] { wait_for_work(); });
  } catch (const std::system_error&) {
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(state_);
    closing_ = true;
  }
  begin_.notify_all();
  for (std::thread& other : others_) other.join();
}

void ThreadPool::run(int threads, TeamWork work) {
  const std::unique_lock<std::mutex> call(call_, std::try_to_lock);
  if (!call || others_.empty()) {
    for (int i = 0; i < threads; ++i) work.call(work.data, i, threads);
    return;
  }
  std::unique_lock<std::mutex> lock(state_);
  work_ = work;
  shares_ = left_ = threads;
  next_ = 0;
  begin_.notify_all();
  take_shares(lock);
  end_.wait(lock, [this] { return left_ == 0; });
}

// Runs the remaining shares of the call. `lock` holds the state's mutex, and is released while a share runs.
void ThreadPool::take_shares(std::unique_lock<std::mutex>& lock) {
  while (next_ < shares_) {
    const int mine = next_++;
    const TeamWork work = work_;
    const int shares = shares_;
    lock.unlock();
    work.call(work.data, mine, shares);
    lock.lock();
    if (--left_ == 0) end_.notify_one();
  }
}

void ThreadPool::wait_for_work() {
  std::unique_lock<std::mutex> lock(state_);
  while (true) {
    begin_.wait(lock, [this] { return closing_ || next_ < shares_; });
    if (closing_) return;
    take_shares(lock);
  }
}

}  // namespace mtlkit
