// Arguments of a complete SS2D layer on the CPU, float32, without gradients (formula: mtlkit/nn/ss2d.py).
#pragma once

#include "common/ss2d.h"
#include "common/tensor.h"

namespace mtlkit {

enum class Gate : int { kNone = 0, kSilu = 1, kLinear = 2 };

struct SS2DLayerForward {
  SS2DShape shape;          // channels: those of the scan, D
  int64_t model;            // channels in and out, C
  int64_t kernel;           // rows and columns of the convolution, k: 3, 5 or 7
  const void* x;            // (B, H, W, C), contiguous
  Tensor<2> in_weight;      // (2 D, C); (D, C) without a gate
  Tensor<1> in_bias;        // may be absent
  Tensor<3> conv_weight;    // (D, k, k), absent without a convolution
  Tensor<1> conv_bias;      // (D), may be absent
  Tensor<2> x_proj_weight;  // (4 M, D)
  Tensor<3> dt_weight;      // (4, D, R)
  Tensor<2> dt_bias;        // (4, D)
  Tensor<2> A_logs;         // (4 D, N)
  Tensor<1> Ds;             // (4 D)
  bool norm;                // whether to apply LayerNorm after the scan
  Tensor<1> norm_weight;    // (D), absent for ones
  Tensor<1> norm_bias;      // (D), absent for zeros
  double eps;
  int gate;              // Gate
  Tensor<2> out_weight;  // (C, D)
  Tensor<1> out_bias;    // (C), may be absent
  void* y;               // (B, H, W, C), contiguous
  int threads;
};

}  // namespace mtlkit
