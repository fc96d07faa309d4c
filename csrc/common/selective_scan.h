// The 1-D selective scan, with the semantics of mamba-ssm's selective_scan_fn: sizes.
//
// B sequences, D channels, L tokens, N states, G groups of channels that share B and C.
#pragma once

#include "common/ss2d.h"

namespace mtlkit {

struct SelectiveScanShape {
  int64_t batch, channels, tokens, states, groups;

  constexpr int64_t checkpoints() const { return (tokens + kCheckpointTokens - 1) / kCheckpointTokens; }
};

}  // namespace mtlkit
