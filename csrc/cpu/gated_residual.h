// The end of a residual block in one pass over the maps, or two with gates; inference, float32.
//
// B images, C channels, H x W pixels; all arrays are contiguous. With h = sum_i weights_i maps_i + bias:
//
//   channels = sigmoid(fc2 relu(fc1 mean(h) + fc1_bias) + fc2_bias)      (B, C)
//   pixels   = sigmoid(conv7x7([max_c h; mean_c h]) + spatial_bias)      (B, H, W), zeros beyond the borders
//   y        = relu(h channels pixels + residual)                        without gates relu(h + residual)
#pragma once

#include <cstdint>

namespace mtlkit {

inline constexpr int kMostMaps = 3;
inline constexpr int64_t kSpatialTaps = 7;

struct GatedResidualForward {
  int64_t batch, channels, height, width;
  const float* maps[kMostMaps];                                // (B, C, H, W) each
  const float* weights;                                        // (B, kMostMaps)
  const float* bias;                                           // (C)
  const float* residual;                                       // (B, C, H, W)
  int64_t hidden;                                              // 0 without gates; the following are then null
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;  // (hidden, C), (hidden), (C, hidden), (C)
  const float *spatial_weight, *spatial_bias;                  // (2, 7, 7), (1)
  float* y;                                                    // (B, C, H, W)
  int threads;
};

// y[b, o, 2 m + i, 2 n + j] = phases[2 i + j][b, o, m, n], cropped to height x width.
struct InterleaveForward {
  int64_t planes, rows, columns, height, width;  // planes: B times O; rows x columns: size of a phase
  const float* phases[4];
  float* y;
  int threads;
};

}  // namespace mtlkit
