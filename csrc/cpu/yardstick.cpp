// The rate that no scan of this form can pass on this machine: state updates whose operands never leave the registers.
#include "kernels.h"
#include "scan.h"
#include "threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Runs `tokens` tokens of 16 states and one vector of channels on each thread, and returns the count of state updates:
// one exp2, its argument, and the three multiplications and additions of h <- a h + x B, y <- y + h C.
int64_t yardstick(int64_t tokens, int threads) {
  constexpr int kStates = 16;
  on_threads(threads, [&](int, int) {
    FloatVec A[kStates], h[kStates], y{};
    for (int n = 0; n < kStates; ++n) A[n] = splat(-0.01f * static_cast<float>(n + 1)), h[n] = FloatVec{};
    const FloatVec x = splat(0.5f), b = splat(0.25f), c = splat(0.125f);
    FloatVec dt = splat(0.01f);
    for (int64_t t = 0; t < tokens; ++t) {
      FloatVec even{}, odd{};
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        h[n] = h[n] * exp2(dt * A[n]) + x * b;
        (n & 1 ? odd : even) += h[n] * c;
      }
      y += even + odd;
      dt += 1e-9f;
    }
    // The result must look wanted, or the compiler would drop the work.
    volatile float sink = y[0];
    (void)sink;
  });
  return tokens * kStates * kLanes<float> * threads;
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
