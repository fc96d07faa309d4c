// Calls from several threads to pools that are created and destroyed; each result must be complete on return.
#include "cpu/thread_pool.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr int kPools = 20, kCallers = 3, kCalls = 100, kMostShares = 7;
using Numbers = std::array<int, 64>;

struct Job {
  const Numbers& from;
  Numbers& to;
};

void add_one(void* data, int thread, int threads) {
  const Job& job = *static_cast<Job*>(data);
  for (size_t i = thread; i < job.from.size(); i += threads) job.to[i] = job.from[i] + 1;
}

int wrong_calls(mtlkit::ThreadPool& pool) {
  int wrong = 0;
  for (int call = 0; call < kCalls; ++call) {
    Numbers from, to{};
    from.fill(call);
    Job job{from, to};
    pool.run(1 + call % kMostShares, {add_one, &job});
    for (const int value : to) wrong += value != call + 1;
  }
  return wrong;
}

}  // namespace

int main() {
  std::atomic<int> wrong{0};
  for (int i = 0; i < kPools; ++i) {
    mtlkit::ThreadPool pool(4);
    std::vector<std::thread> callers;
    for (int c = 0; c < kCallers; ++c) callers.emplace_back([&] { wrong += wrong_calls(pool); });
    for (std::thread& caller : callers) caller.join();
  }
  std::printf("%d wrong\n", wrong.load());
  return wrong != 0;
}
