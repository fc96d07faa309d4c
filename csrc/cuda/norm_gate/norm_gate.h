// Arguments and layouts of the CUDA kernels of norm_gate (formula: common/norm_gate.h). Computation is in float.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/norm_gate.h"
#include "common/tensor.h"

namespace mtlkit::cuda {

struct NormGate {
  NormGateShape shape;
  Tensor<2> x;          // (rows, D); stride[1] is 1, also below
  Tensor<2> z;          // (rows, D) in the dtype of out, may be absent
  const float* weight;  // (D), null for ones
  const float* bias;    // (D), null for zeros
  float eps;
};

struct NormGateForward {
  NormGate norm;
  Tensor<2> addend;  // (rows, D) in the dtype of x, added to x first; may be absent
  Tensor<2> out;     // (rows, D)
};

struct NormGateBackward {
  NormGate norm;
  Tensor<2> dout;   // (rows, D) in the dtype of z
  Tensor<2> dx;     // (rows, D) in the dtype of x
  Tensor<2> dz;     // (rows, D) in the dtype of z; absent if z is
  float* partials;  // (blocks, 2, D): the sums of each block for the gradients of weight and bias
  int64_t blocks;   // from norm_gate_blocks
};

// Kernels that keep a row in registers, in packs of four channels: lanes per row, packs per lane. The first that fits a
// row is used. Rows that fit none or are not aligned go to kernels that read a row repeatedly, from the cache.
struct NormGateLayout {
  int lanes, packs;
};
inline constexpr NormGateLayout kNormGateLayouts[] = {{8, 4}, {32, 4}, {32, 8}};
inline constexpr int kNormGateLayoutCount = 3, kNormGateThreads = 256, kNormGateVector = 4;

// The index of the layout for a number of channels; kNormGateLayoutCount if there is none.
inline int norm_gate_layout(int64_t channels) {
  int index = 0;
  while (index < kNormGateLayoutCount &&
         kNormGateLayouts[index].lanes * kNormGateLayouts[index].packs * kNormGateVector < channels) {
    ++index;
  }
  return index;
}

// Blocks of a backward pass: two per multiprocessor, each looping over many rows, but no block without a row.
inline int64_t norm_gate_blocks(int64_t rows, int64_t channels, int multiprocessors) {
  const int layout = norm_gate_layout(channels);
  const int64_t abreast = layout < kNormGateLayoutCount ? kNormGateThreads / kNormGateLayouts[layout].lanes : 1;
  return std::max<int64_t>(1, std::min<int64_t>(2 * int64_t{multiprocessors}, (rows + abreast - 1) / abreast));
}

}  // namespace mtlkit::cuda
