// How a kernel's work is shared among threads.
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
