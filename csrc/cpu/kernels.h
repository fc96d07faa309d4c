// The table of kernels; each instruction-set level has one.
#pragma once

#include "cpu/causal_conv1d.h"
#include "cpu/depthwise_conv2d/depthwise_conv2d.h"
#include "cpu/directional_scan/directional_scan.h"
#include "cpu/gated_residual.h"
#include "cpu/interaction/gating.h"
#include "cpu/interaction/interaction.h"
#include "cpu/linear.h"
#include "cpu/norm_gate.h"
#include "cpu/selective_scan.h"
#include "cpu/selective_state_update.h"
#include "cpu/ss2d.h"
#include "cpu/ss2d_layer.h"

namespace mtlkit {

// The sizes that determine the layout of the projection's signs.
struct InteractionBlock {
  int rows;   // rows per block
  int bytes;  // bytes per vector
};

// Return values of the kernels.
enum Status : int { kOk = 0, kOutOfMemory = 1, kTokenOutOfRange = 2 };

struct CpuKernels {
  const char* isa;
  int (*ss2d_forward)(const SS2DForward&);
  int (*ss2d_backward)(const SS2DBackward&);
  int (*ss2d_layer_forward)(const SS2DLayerForward&);
  int (*directional_scan_forward)(const DirectionalScanForward&);
  int (*directional_scan_backward)(const DirectionalScanBackward&);
  int (*selective_scan_forward)(const SelectiveScanForward&);
  int (*selective_scan_backward)(const SelectiveScanBackward&);
  int (*linear_forward)(const LinearForward&);
  int (*linear_backward)(const LinearBackward&);
  int (*depthwise_conv2d_forward)(const DepthwiseConv2dForward&);
  int (*depthwise_conv2d_backward)(const DepthwiseConv2dBackward&);
  int (*causal_conv1d_forward)(const CausalConv1dForward&);
  int (*causal_conv1d_backward)(const CausalConv1dBackward&);
  int (*causal_conv1d_update)(const CausalConv1dUpdate&);
  int (*selective_state_update)(const SelectiveStateUpdate&);
  int (*norm_gate_forward)(const NormGateForward&);
  int (*norm_gate_backward)(const NormGateBackward&);
  int (*interaction_reduce_forward)(const InteractionReduceForward&);
  int (*interaction_reduce_backward)(const InteractionReduceBackward&);
  InteractionBlock interaction_block;
  int (*interaction_scale_forward)(const InteractionScaleForward&);
  int (*interaction_scale_backward)(const InteractionScaleBackward&);
  int (*interaction_gating_forward)(const InteractionGatingForward&);
  int (*interaction_gating_backward)(const InteractionGatingBackward&);
  int (*gated_residual_forward)(const GatedResidualForward&);
  int (*interleave_forward)(const InterleaveForward&);
  int64_t (*peak_rate)(int64_t tokens, int threads, bool polynomial);
};

}  // namespace mtlkit
