// The choice of the instruction-set level.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mtlkit {

// The levels that this machine can run, lowest first.
std::vector<std::string> cpu_levels();

// The kernels in use: those of the highest level, unless MTLKIT_CPU_ISA or set_cpu_level selected another.
const CpuKernels& cpu_kernels();

// Selects a level; returns false if this machine cannot run it.
bool set_cpu_level(const std::string& level);

}  // namespace mtlkit
