// Entry points of the CUDA kernels for code that includes no CUDA header.
//
// A launcher returns the cudaError_t of its launch as an int, 0 for success; error_string(code) gives the text. It
// queues the work on `stream` (a cudaStream_t, null for the default stream) and does not wait. The caller must make the
// tensors' device current.
#pragma once

#include "cuda/causal_conv1d/causal_conv1d.h"
#include "cuda/dwconv_silu/dwconv_silu.h"
#include "cuda/interaction/interaction.h"
#include "cuda/norm_gate/norm_gate.h"
#include "cuda/selective_scan/selective_scan.h"
#include "cuda/ss2d/ss2d.h"

namespace mtlkit::cuda {

int launch_norm_gate_fwd(const NormGateForward& params, void* stream);
int launch_norm_gate_bwd(const NormGateBackward& params, void* stream);

int launch_dwconv_silu_fwd(const DwconvSiluForward& params, void* stream);
int launch_dwconv_silu_bwd(const DwconvSiluBackward& params, void* stream);

int launch_interaction_reduce_fwd(const InteractionReduceForward& params, void* stream);
int launch_interaction_reduce_bwd(const InteractionReduceBackward& params, void* stream);
int launch_interaction_scale(const InteractionScale& params, void* stream);
int launch_interaction_factors(const InteractionFactors& params, void* stream);
int launch_interaction_gating_fwd(const InteractionGatingForward& params, void* stream);
int launch_interaction_gating_bwd(const InteractionGatingBackward& params, void* stream);

int launch_causal_conv1d_fwd(const CausalConv1dForward& params, void* stream);
int launch_causal_conv1d_bwd(const CausalConv1dBackward& params, void* stream);

int launch_selective_scan_fwd(const SelectiveScanForward& params, void* stream);
int launch_selective_scan_bwd(const SelectiveScanBackward& params, void* stream);

int launch_ss2d_fwd(const SS2DForward& params, void* stream);
int launch_ss2d_bwd(const SS2DBackward& params, void* stream);

const char* error_string(int code);

// Version of the CUDA toolkit that compiled the kernels, as 1000 * major + 10 * minor.
int toolkit_version();

}  // namespace mtlkit::cuda
