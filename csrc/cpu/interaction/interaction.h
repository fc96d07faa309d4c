// Arguments of the two passes of task interaction over a map: one gathers sums, one scales the channels.
//
// B images, C channels, H x W pixels, L = H W, P projected channels. With z = relu(weight x + bias), (B, P, L):
//
//   mean, variance (population) of each channel
//   energy = (sum |x(h+1,w) - x(h,w)| + sum |x(h,w+1) - x(h,w)|) / (C L)
//   pooled = sum_l share_l z_l, where share is 1 / L, or the softmax of attn x over the pixels
//
//   y = x factors
//
// All gradients and sums without strides are contiguous and in the type of computation. Signs, which spare the backward
// pass the projection, are laid out as the instruction set has it: P padded to whole blocks of rows, L to whole
// vectors.
#pragma once

#include "common/interaction.h"
#include "common/tensor.h"

namespace mtlkit {

struct InteractionReduceForward {
  InteractionShape shape;
  Tensor<3> x;       // (B, C, L)
  Tensor<2> weight;  // (P, C), absent where nothing is pooled
  Tensor<1> bias;    // (P), absent with weight
  Tensor<1> attn;    // (C), absent for the plain mean
  void* mean;        // (B, C)
  void* variance;    // (B, C)
  void* energy;      // (B), null if not wanted
  void* pooled;      // (B, P), null with weight
  void* softmax;     // (B, 2), the largest logit and the sum of exponentials about it; null with attn
  uint16_t* signs;   // (B, rows, vectors), a bit for each lane of z, set unless z <= 0; null if not wanted
  bool use_double;   // the type of computation: double or float
  int threads;
};

// The gradient of what was gathered, plus dy factors, the gradient of the scaling pass, where dy is given.
struct InteractionReduceBackward {
  InteractionReduceForward forward;  // as it was; mean, pooled, softmax and signs are read
  Tensor<3> dy;                      // (B, C, L), may be absent
  const void* factors;               // (B, C), null with dy
  const void* dmean;                 // (B, C), null for zeros, as the next three
  const void* dvariance;             // (B, C)
  const void* denergy;               // (B)
  const void* dpooled;               // (B, P)
  Tensor<3> dx;                      // (B, C, L), absent if not wanted
  void* dweight;                     // (P, C), null if not wanted, as the next two
  void* dbias;                       // (P)
  void* dattn;                       // (C)
};

// Of every map either the pixels or the channels lie side by side, the same of all.
struct InteractionScaleForward {
  InteractionShape shape;
  Tensor<3> x;          // (B, C, L)
  const void* factors;  // (B, C)
  Tensor<3> y;          // (B, C, L) in the dtype of x
  bool use_double;
  int threads;
};

struct InteractionScaleBackward {
  InteractionScaleForward forward;  // as it was; factors and y are not read
  Tensor<3> dy;                     // (B, C, L) in the dtype of x
  void* dfactors;                   // (B, C)
};

}  // namespace mtlkit
