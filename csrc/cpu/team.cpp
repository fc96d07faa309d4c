#include "cpu/team.h"

#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mtlkit {
namespace {

bool forked = false;  // written in a child before fork returns, when it has one thread

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool own_threads() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  return forked;
#endif
}

void on_own_threads(int threads, const std::function<void(int, int)>& work) {
  std::vector<std::thread> others;
  others.reserve(threads);
  int next = 1;
  try {
    for (; next < threads; ++next) others.emplace_back(std::cref(work), next, threads);
  } catch (const std::system_error&) {
    for (int rest = next; rest < threads; ++rest) work(rest, threads);
  }
  work(0, threads);
  for (std::thread& other : others) other.join();
}

}  // namespace mtlkit
