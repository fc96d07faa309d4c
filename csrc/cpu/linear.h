// Arguments of a linear layer over the channels of pixels or tokens, on the CPU, float32.
#pragma once

#include "common/tensor.h"

namespace mtlkit {

struct LinearForward {
  int64_t rows, inputs, outputs;
  const void* x;     // (rows, inputs); like y and all gradients, contiguous and float32
  Tensor<2> weight;  // (outputs, inputs)
  Tensor<1> bias;    // (outputs), may be absent
  void* y;           // (rows, outputs)
  int threads;
};

struct LinearBackward {
  LinearForward forward;  // the arguments of forward; bias and y are not read
  const void* dy;         // (rows, outputs)
  void* dx;               // (rows, inputs); null if not wanted, like the next two
  void* dweight;          // (outputs, inputs)
  void* dbias;            // (outputs)
  bool add;               // whether to add to dx instead of setting it
};

}  // namespace mtlkit
