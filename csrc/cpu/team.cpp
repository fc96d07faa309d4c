#include "cpu/team.h"

#if defined(_OPENMP)
#include <omp.h>

#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#endif

namespace mtlkit {
namespace {

thread_local HostPool* host_pool = nullptr;

#if defined(_OPENMP)
bool forked = false;  // written in a child before fork returns, when it has one thread

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

// Whether a call starts threads of its own: in a process that was forked, because libgomp would wait there for the
// threads of its parent, and under ThreadSanitizer, which does not see how libgomp's threads wait for each other.
bool own_threads() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  return forked;
#endif
}

// A team that is there for this call alone. Where the system has no more threads, the calling one does the work of the
// rest.
void run_on_own_threads(int threads, TeamWork work) {
  std::vector<std::thread> others;
  others.reserve(threads);
  int next = 1;
  try {
    for (; next < threads; ++next) others.emplace_back(work.call, work.data, next, threads);
  } catch (const std::system_error&) {
    for (int rest = next; rest < threads; ++rest) work.call(work.data, rest, threads);
  }
  work.call(work.data, 0, threads);
  for (std::thread& other : others) other.join();
}
#endif

}  // namespace

UsePool::UsePool(HostPool& pool) { host_pool = &pool; }
UsePool::~UsePool() { host_pool = nullptr; }

void run_team(int threads, TeamWork work) {
  if (host_pool) return host_pool->run(threads, work);
#if defined(_OPENMP)
  if (own_threads()) return run_on_own_threads(threads, work);
  if (!omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
    work.call(work.data, omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  work.call(work.data, 0, 1);
}

}  // namespace mtlkit
