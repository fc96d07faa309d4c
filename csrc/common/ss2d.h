// The four-direction 2-D selective scan: sizes and scan orders.
//
// B images, D channels, H x W pixels, L = H * W, N states, R rank of the time step, M = R + 2 N.
// The four scan orders: 0 row-major, 1 column-major, 2 the reverse of 0, 3 the reverse of 1.
#pragma once

#include <cstdint>

namespace mtlkit {

inline constexpr int kDirections = 4;
// Forward saves the states of each channel once per this many tokens, for the backward pass.
inline constexpr int kCheckpointTokens = 32;

struct SS2DShape {
  int64_t batch, channels, height, width, states, rank;

  constexpr int64_t tokens() const { return height * width; }
  constexpr int64_t row() const { return rank + 2 * states; }
  constexpr int64_t checkpoints() const { return (tokens() + kCheckpointTokens - 1) / kCheckpointTokens; }
};

}  // namespace mtlkit
