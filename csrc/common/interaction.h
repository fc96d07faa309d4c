// Shapes of task interaction (formulas: mtlkit/operators/interaction).
#pragma once

#include <cstdint>

namespace mtlkit {

// The shape of the passes over the map.
struct InteractionShape {
  int64_t batch, channels, height, width, projected;

  constexpr int64_t pixels() const { return height * width; }
};

// The shape of the layers between the passes: B images, C channels, P projected channels, F entries of the vector, H
// hidden units and Q projected entries of UPA.
struct GatingShape {
  int64_t batch, channels, projected, features, hidden, queries;
};

enum GatingWeight {
  kContextWeight,  // (F, P)
  kContextBias,    // (F)
  kClfGateWeight,  // (F, F)
  kClfGateBias,    // (F)
  kGainWeight,     // (C, F)
  kGainBias,       // (C)
  kSegGateWeight,  // (C, C)
  kSegGateBias,    // (C)
  kNormWeight,     // (F)
  kNormBias,       // (F)
  kFc1Weight,      // (H, S), S signals
  kFc1Bias,        // (H)
  kFc2Weight,      // (2, H)
  kFc2Bias,        // (2)
  kSegProj,        // (Q, C), null for two signals
  kClfProj,        // (Q, F), null for two signals
  kGatingWeights,
};

}  // namespace mtlkit
