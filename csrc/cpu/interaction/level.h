// A level of task interaction in one call, where no gradient is wanted.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "cpu/kernels.h"

namespace mtlkit {

// The type of computation, the threads, and B, C and P are those of `reduce`. Sums and factors are not returned, nor is
// what the backward pass reads: their addresses are not read.
struct InteractionLevelForward {
  InteractionReduceForward reduce;
  InteractionGatingForward gating;
  Tensor<3> y;  // (B, C, L) in the dtype and layout of x
};

inline int interaction_level_forward(const CpuKernels& kernels, const InteractionLevelForward& p) {
  InteractionReduceForward reduce = p.reduce;
  InteractionGatingForward gating = p.gating;
  const int64_t B = reduce.shape.batch, C = reduce.shape.channels, P = reduce.shape.projected;
  const int64_t F = gating.shape.features, Q = gating.shape.queries, size = reduce.use_double ? 8 : 4;
  const int64_t kept = 2 * B * (F + C + Q) + 2 * F, count = B * (3 * C + P + 3) + kept;
  const std::unique_ptr<std::byte[]> memory(new (std::nothrow) std::byte[count * size]);
  if (!memory) return kOutOfMemory;
  std::byte* next = memory.get();
  const auto take = [&](int64_t some) {
    void* const piece = next;
    next += some * size;
    return piece;
  };
  gating.mean = reduce.mean = take(B * C);
  gating.variance = reduce.variance = take(B * C);
  gating.energy = reduce.energy = gating.alignment ? take(B) : nullptr;
  gating.pooled = reduce.pooled = take(B * P);
  reduce.softmax = reduce.attn ? take(2 * B) : nullptr;
  reduce.signs = nullptr;
  gating.shape.batch = B, gating.shape.channels = C, gating.shape.projected = P;
  gating.use_double = reduce.use_double;
  gating.threads = reduce.threads;
  gating.factors = take(B * C);
  gating.kept = take(kept);
  if (const int status = kernels.interaction_reduce_forward(reduce)) return status;
  if (const int status = kernels.interaction_gating_forward(gating)) return status;
  return kernels.interaction_scale_forward(
      {reduce.shape, reduce.x, gating.factors, p.y, reduce.use_double, reduce.threads});
}

}  // namespace mtlkit
