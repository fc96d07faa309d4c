// The table of kernels that each instruction-set level fills in, and the choice between the levels.
#pragma once

#include "../common/dwconv_silu.h"
#include "../common/interaction.h"
#include "../common/interaction_vectors.h"
#include "../common/norm_gate.h"
#include "../common/selective_scan.h"
#include "../common/ss2d.h"
#include "../common/status.h"

namespace mtlkit {

struct CpuKernels {
  const char* isa;
  int (*ss2d_forward)(const SS2DForward&);
  int (*ss2d_backward)(const SS2DBackward&);
  int (*selective_scan_forward)(const SelectiveScanForward&);
  int (*selective_scan_backward)(const SelectiveScanBackward&);
  int (*dwconv_silu_forward)(const DwconvSiluForward&);
  int (*dwconv_silu_backward)(const DwconvSiluBackward&);
  int (*norm_gate_forward)(const NormGateCpuForward&);
  int (*norm_gate_backward)(const NormGateCpuBackward&);
  int (*interaction_reduce_forward)(const InteractionReduceForward&);
  int (*interaction_reduce_backward)(const InteractionReduceBackward&);
  int interaction_rows, interaction_bytes;  // a block of rows, and a vector: what the layout of signs depends on
  int (*interaction_scale_forward)(const InteractionScaleForward&);
  int (*interaction_scale_backward)(const InteractionScaleBackward&);
  int (*interaction_vectors_forward)(const InteractionVectors&);
  int (*interaction_vectors_backward)(const InteractionVectorsBackward&);
  int64_t (*yardstick)(int64_t tokens, int threads);
};

}  // namespace mtlkit
