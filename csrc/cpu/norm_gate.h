// Arguments of norm_gate on the CPU (formula: common/norm_gate.h).
#pragma once

#include "common/norm_gate.h"
#include "common/tensor.h"

namespace mtlkit {

struct NormGateForward {
  NormGateShape shape;
  Tensor<2> x;       // (rows, D); stride[1] is 1, also below
  Tensor<2> z;       // (rows, D), may be absent
  Tensor<1> weight;  // (D), absent for ones
  Tensor<1> bias;    // (D), absent for zeros
  Tensor<2> out;     // (rows, D)
  double eps;
  bool use_double;  // the type of computation: double or float
  int threads;
};

struct NormGateBackward {
  NormGateForward forward;  // the arguments of forward; out is not read
  Tensor<2> dout;           // (rows, D)
  Tensor<2> dx;             // (rows, D)
  Tensor<2> dz;             // (rows, D), absent if z is
  void* dweight;            // (D); like dbias, contiguous and in the type of computation; null if weight is absent
  void* dbias;              // (D), null if bias is absent
};

}  // namespace mtlkit
