#include "onnxruntime/session_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

namespace mtlkit {
namespace {

using Clock = std::chrono::steady_clock;

// Calls f(i) for i = 0, ..., count - 1 on the session's threads.
template <typename F>
void parallel_for(ort::Api* api, const ort::Call* call, int count, F f) {
  const auto run = [](void* data, size_t i) { (*static_cast<F*>(data))(static_cast<int>(i)); };
  ort::Status* status = ort::ParallelFor::call(api, call, +run, static_cast<size_t>(count), size_t{0}, &f);
  if (!status) return;
  ort::ReleaseStatus::call(api, status);  // on an error, nothing has run
  for (int i = 0; i < count; ++i) f(i);
}

// Counts the threads that run at the same time: each waits until `most` have arrived or the time is up.
int meeting(ort::Api* api, const ort::Call* call, int most) {
  static std::atomic<uint64_t> meetings{0};
  static thread_local uint64_t last_attended = 0;
  const uint64_t meeting = ++meetings;
  const auto end = Clock::now() + std::chrono::microseconds(500);
  std::atomic<int> there{0};
  parallel_for(api, call, most, [&](int) {
    if (last_attended == meeting) return;
    last_attended = meeting;
    ++there;
    while (there < most && Clock::now() < end) std::this_thread::yield();
  });
  return there;
}

}  // namespace

int ThreadCount::of(ort::Api* api, const ort::Call* call) {
  if (const int known = known_) return known;
  const int most = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int found = 1;
  for (int attempt = 0; attempt < 4 && found < most; ++attempt) found = std::max(found, meeting(api, call, most));
  known_ = found;
  return found;
}

void SessionPool::run(int threads, TeamWork work) {
  parallel_for(api_, call_, threads, [&](int thread) { work.call(work.data, thread, threads); });
}

}  // namespace mtlkit
