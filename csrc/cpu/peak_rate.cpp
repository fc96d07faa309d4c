// An upper bound on the speed of scans of this form on this machine: it runs only the state updates, with operands in
// registers and cache.
#include "cpu/kernels.h"
#include "cpu/scan.h"
#include "cpu/threads.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

// Runs `tokens` tokens of 16 states and one vector of channels on each thread, and returns the count of state updates:
// one exp2 and its argument, and the multiplications and additions of h <- a h + x B, y <- y + h C. It leaves out the
// rest of a real scan: time step, softplus, skip, and memory beyond the first-level cache. With `near`, exp2 is the
// fast version for decays near 1, as in a scan; else the polynomial for any exponent.
template <bool near>
int64_t run(int64_t tokens, int threads) {
  constexpr int kStates = 16;
  on_threads(threads, [&](int thread, int) {
    FloatVec A[kStates], h[kStates], y{};
    float B[kStates], C[kStates];
    for (int n = 0; n < kStates; ++n) {
      A[n] = splat(-0.01f * static_cast<float>(n + 1));
      B[n] = 0.25f + 0.01f * static_cast<float>(n + thread);
      C[n] = 0.5f - B[n];
      h[n] = FloatVec{};
    }
    FloatVec dt = splat(0.01f);
    for (int64_t t = 0; t < tokens; ++t) {
      const FloatVec x = dt * 0.5f;  // changes with each token, as in a scan, so that the compiler cannot hoist x B
      FloatVec even{}, odd{};
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        h[n] = h[n] * exp2_if<near>(dt * A[n]) + x * B[n];
        (n & 1 ? odd : even) += h[n] * C[n];
      }
      y += even + odd;
      dt += 1e-9f;
    }
    // Uses the result, so that the compiler does not remove the work.
    volatile float sink = y[0];
    (void)sink;
  });
  return tokens * kStates * kLanes<float> * threads;
}

}  // namespace

int64_t peak_rate(int64_t tokens, int threads, bool polynomial) {
  return polynomial ? run<false>(tokens, threads) : run<true>(tokens, threads);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
