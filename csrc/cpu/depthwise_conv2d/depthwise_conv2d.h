// Arguments of the depthwise convolution on the CPU, for depthwise_conv2d and dwconv_silu.
//
// B images, D channels, H x W input and H' x W' output pixels, k x k filters. Pixel (h, w) of the output reads the
// pixels (h * stride + i * dilation - top, w * stride + j * dilation - left) with i, j in 0 .. k - 1; those outside are
// 0.
#pragma once

#include "common/tensor.h"

namespace mtlkit {

struct DepthwiseConv2dShape {
  int64_t batch, channels, height, width;
  int64_t kernel;                    // 3, 5 or 7
  int64_t out_height, out_width;     // H', W'
  int64_t stride = 1, dilation = 1;  // stride: 1 or 2; dilation: any with stride 1, else 1
  int64_t top = 1, left = 1;         // padding, at most dilation * (k - 1)
};

struct DepthwiseConv2dForward {
  DepthwiseConv2dShape shape;
  Tensor<4> x;       // (B, D, H, W)
  Tensor<3> weight;  // (D, k, k)
  Tensor<1> bias;    // (D), may be absent
  bool silu;         // whether to apply SiLU
  Tensor<4> y;       // (B, D, H', W')
  bool use_double;   // the type of computation: double or float
  int threads;
};

struct DepthwiseConv2dBackward {
  DepthwiseConv2dForward forward;  // the arguments of forward; y is not read
  Tensor<4> dy;                    // (B, D, H', W')
  Tensor<4> dx;                    // (B, D, H, W), may be absent
  void* dweight;                   // (D, k, k), may be absent; like dbias, contiguous and in the type of computation
  void* dbias;                     // (D), may be absent
};

// 3 x 3 with padding 1 and stride 1, for dwconv_silu.
inline DepthwiseConv2dShape same_3x3(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return {batch, channels, height, width, 3, height, width};
}

}  // namespace mtlkit
