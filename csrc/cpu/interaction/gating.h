// Arguments of task interaction between its two passes over the map: from sums to factors (formulas:
// mtlkit/operators/interaction).
//
// Letters are as in common/interaction.h. All tensors are contiguous and in the type of computation.
#pragma once

#include <array>

#include "common/interaction.h"

namespace mtlkit {

using GatingWeights = std::array<void*, kGatingWeights>;

struct InteractionGatingForward {
  GatingShape shape;
  double tau, momentum, eps;
  bool alignment;          // signals: alignment, energy, spread; else the two variances
  bool training;           // normalise by the batch's statistics and update the running ones
  const void* mean;        // (B, C)
  const void* variance;    // (B, C), read for two signals
  const void* energy;      // (B), read for three
  const void* pooled;      // (B, P)
  const void* f;           // (B, F)
  const void* normaliser;  // (2), null for the mean over the batch
  GatingWeights weights;
  void* norm_mean;               // (F)
  void* norm_var;                // (F)
  void* mu;                      // (B, C)
  void* factors;                 // (B, C), 1 + w_seg (mu - 1)
  void* clf;                     // (B, F)
  void* enhanced;                // (B, F)
  void* gates;                   // (B, 2)
  std::array<void*, 3> signals;  // (B) each
  void* kept;                    // saved for the backward pass, 2 B (F + C + Q) + 2 F elements
  bool use_double;               // the type of computation: double or float
  int threads;
};

struct InteractionGatingBackward {
  InteractionGatingForward forward;  // as in forward; reads all but factors, clf and the running statistics
  const void* dfactors;              // (B, C), null for zeros, like the next five
  const void* dmu;                   // (B, C)
  const void* dclf;                  // (B, F)
  const void* denhanced;             // (B, F)
  const void* dgates;                // (B, 2)
  std::array<void*, 3> dsignals;     // (B) each
  void* dmean;                       // (B, C), null if not wanted, like all that follow
  void* dvariance;                   // (B, C)
  void* denergy;                     // (B)
  void* dpooled;                     // (B, P)
  void* df;                          // (B, F)
  GatingWeights dweights;
};

}  // namespace mtlkit
