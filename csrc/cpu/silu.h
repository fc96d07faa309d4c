// SiLU(x) = x / (1 + exp(-x)) and its derivative, for kernels that end with it.
#pragma once

#include "cpu/simd.h"

namespace mtlkit {
namespace MTLKIT_ISA {

template <typename V>
struct Silu {
  V value, slope;
};

template <typename V>
MTLKIT_INLINE V silu(V x) {
  return x * sigmoid(x);
}

template <typename V>
MTLKIT_INLINE Silu<V> silu_and_slope(V x) {
  const V s = sigmoid(x);
  return {x * s, s * (1 + x * (1 - s))};
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
