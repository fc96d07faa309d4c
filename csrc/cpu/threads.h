// Threads: OpenMP where the compiler has it, one thread otherwise.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/integer_math.h"
#include "cpu/team.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Calls f(thread, threads) on every thread of a team of at most `wanted`.
template <typename F>
void on_threads([[maybe_unused]] int64_t wanted, F f) {
#if defined(_OPENMP)
  if (wanted > 1 && own_threads()) return on_own_threads(static_cast<int>(wanted), f);
  if (wanted > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(static_cast<int>(wanted))
    f(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  f(0, 1);
}

// Work items [first, last) of a thread: fixed by the counts alone, so that a sum over a thread's items repeats.
struct Share {
  int64_t first, last;
};

MTLKIT_INLINE Share share(int64_t items, int64_t threads, int64_t thread) {
  return {items * thread / threads, items * (thread + 1) / threads};
}

// How the items of a call are split further, so that all threads have work: the divisor of `pieces` (a power of two)
// with the shortest critical path, the smallest where several are within a twentieth of it, because every split costs
// a buffer and a sum.
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
