// Arithmetic on sizes.
#pragma once

#include "cpu/simd.h"

namespace mtlkit {
namespace MTLKIT_ISA {

MTLKIT_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
MTLKIT_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
MTLKIT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MTLKIT_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
