// This level's table of kernels.
#include "cpu/interaction/packed_matrix.h"
#include "cpu/kernels.h"

namespace mtlkit {
namespace MTLKIT_ISA {

int ss2d_forward(const SS2DForward&);
int ss2d_backward(const SS2DBackward&);
int ss2d_layer_forward(const SS2DLayerForward&);
int directional_scan_forward(const DirectionalScanForward&);
int directional_scan_backward(const DirectionalScanBackward&);
int selective_scan_forward(const SelectiveScanForward&);
int selective_scan_backward(const SelectiveScanBackward&);
int linear_forward(const LinearForward&);
int linear_backward(const LinearBackward&);
int depthwise_conv2d_forward(const DepthwiseConv2dForward&);
int depthwise_conv2d_backward(const DepthwiseConv2dBackward&);
int causal_conv1d_forward(const CausalConv1dForward&);
int causal_conv1d_backward(const CausalConv1dBackward&);
int causal_conv1d_update(const CausalConv1dUpdate&);
int selective_state_update(const SelectiveStateUpdate&);
int norm_gate_forward(const NormGateForward&);
int norm_gate_backward(const NormGateBackward&);
int interaction_reduce_forward(const InteractionReduceForward&);
int interaction_reduce_backward(const InteractionReduceBackward&);
int interaction_scale_forward(const InteractionScaleForward&);
int interaction_scale_backward(const InteractionScaleBackward&);
int interaction_gating_forward(const InteractionGatingForward&);
int interaction_gating_backward(const InteractionGatingBackward&);
int gated_residual_forward(const GatedResidualForward&);
int interleave_forward(const InterleaveForward&);
int64_t peak_rate(int64_t tokens, int threads, bool polynomial);

extern const CpuKernels kernels;

#define MTLKIT_NAME_OF(level) #level
#define MTLKIT_NAME(level) MTLKIT_NAME_OF(level)

// Inference-only libraries leave the backward passes out of the table, so the linker drops them.
#if defined(MTLKIT_FORWARD_ONLY)
#define MTLKIT_BACKWARD(kernel) nullptr
#else
#define MTLKIT_BACKWARD(kernel) kernel
#endif

const CpuKernels kernels = {
    MTLKIT_NAME(MTLKIT_ISA),
    ss2d_forward,
    MTLKIT_BACKWARD(ss2d_backward),
    ss2d_layer_forward,
    directional_scan_forward,
    MTLKIT_BACKWARD(directional_scan_backward),
    selective_scan_forward,
    MTLKIT_BACKWARD(selective_scan_backward),
    linear_forward,
    MTLKIT_BACKWARD(linear_backward),
    depthwise_conv2d_forward,
    MTLKIT_BACKWARD(depthwise_conv2d_backward),
    causal_conv1d_forward,
    MTLKIT_BACKWARD(causal_conv1d_backward),
    causal_conv1d_update,
    selective_state_update,
    norm_gate_forward,
    MTLKIT_BACKWARD(norm_gate_backward),
    interaction_reduce_forward,
    MTLKIT_BACKWARD(interaction_reduce_backward),
    {kRows, kVectorBytes},
    interaction_scale_forward,
    MTLKIT_BACKWARD(interaction_scale_backward),
    interaction_gating_forward,
    MTLKIT_BACKWARD(interaction_gating_backward),
    gated_residual_forward,
    interleave_forward,
    peak_rate,
};

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
