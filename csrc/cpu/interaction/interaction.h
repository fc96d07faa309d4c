// Arguments of the two passes of task interaction over a map: one computes sums, one scales the channels.
//
// B images, C channels, H x W pixels, L = H W, P projected channels. With z = relu(weight x + bias), (B, P, L):
//
//   mean, variance (population) of each channel
//   energy = (sum |x(h+1,w) - x(h,w)| + sum |x(h,w+1) - x(h,w)|) / (C L)
//   pooled = sum_l share_l z_l, where share is 1 / L, or the softmax of attn x over the pixels
//
//   y = x factors
//
// Gradients and sums without strides are contiguous and in the type of computation. Saved signs spare the backward pass
// the projection; their layout depends on the instruction set: P is padded to whole blocks of rows, L to whole vectors.
#pragma once

#include "common/interaction.h"
#include "common/tensor.h"

namespace mtlkit {

struct InteractionReduceForward {
  InteractionShape shape;
  Tensor<3> x;       // (B, C, L)
  Tensor<2> weight;  // (P, C), absent without pooling
  Tensor<1> bias;    // (P), absent if weight is
  Tensor<1> attn;    // (C), absent for the plain mean
  void* mean;        // (B, C)
  void* variance;    // (B, C)
  void* energy;      // (B), null if not wanted
  void* pooled;      // (B, P), null if weight is absent
  void* softmax;     // (B, 2), the largest logit and the sum of exponentials relative to it; null without attn
  uint16_t* signs;   // (B, rows, vectors), one bit per lane of z, set unless z <= 0; null if not wanted
  bool use_double;   // the type of computation: double or float
  int threads;
};

// The gradient of the reduction, plus that of the scaling pass, dy factors, if dy is given.
struct InteractionReduceBackward {
  InteractionReduceForward forward;  // the arguments of forward; mean, pooled, softmax and signs are read
  Tensor<3> dy;                      // (B, C, L), may be absent
  const void* factors;               // (B, C), null without dy
  const void* dmean;                 // (B, C), null for zeros, like the next three
  const void* dvariance;             // (B, C)
  const void* denergy;               // (B)
  const void* dpooled;               // (B, P)
  Tensor<3> dx;                      // (B, C, L), absent if not wanted
  void* dweight;                     // (P, C), null if not wanted, like the next two
  void* dbias;                       // (P)
  void* dattn;                       // (C)
};

// Either the pixels or the channels are contiguous, the same in all maps.
struct InteractionScaleForward {
  InteractionShape shape;
  Tensor<3> x;          // (B, C, L)
  const void* factors;  // (B, C)
  Tensor<3> y;          // (B, C, L) in the dtype of x
  bool use_double;
  int threads;
};

struct InteractionScaleBackward {
  InteractionScaleForward forward;  // the arguments of forward; factors and y are not read
  Tensor<3> dy;                     // (B, C, L) in the dtype of x
  void* dfactors;                   // (B, C)
};

}  // namespace mtlkit
