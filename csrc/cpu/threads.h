// Division of a kernel's work among threads.
#pragma once

#include "cpu/integer_math.h"
#include "cpu/team.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Calls f(thread, threads) for every thread of a team of at most `wanted`; some may share a thread of the machine.
template <typename F>
void on_threads(int64_t wanted, F f) {
  if (wanted <= 1) return f(0, 1);
  run_team(static_cast<int>(wanted),
           {[](void* work, int thread, int threads) { (*static_cast<F*>(work))(thread, threads); }, &f});
}

// Work items [first, last) of a thread. They depend only on the counts, so that sums over a thread's items are
// reproducible.
struct Share {
  int64_t first, last;
};

MTLKIT_INLINE Share share(int64_t items, int64_t threads, int64_t thread) {
  return {items * thread / threads, items * (thread + 1) / threads};
}

// The number of parts into which to split each item, so that all threads have work: the divisor of `pieces` (a power of
// two) with the shortest critical path. It takes the smallest divisor within 5 % of the shortest, because every split
// costs a buffer and a sum.
MTLKIT_INLINE int64_t split(int64_t items, int64_t pieces, int64_t threads) {
  int64_t best = 1;
  for (int64_t s = 2; s <= pieces; s *= 2) {
    const double now = static_cast<double>(ceil_div(items * s, threads)) / s;
    const double before = static_cast<double>(ceil_div(items * best, threads)) / best;
    if (now < 0.95 * before) best = s;
  }
  return best;
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
