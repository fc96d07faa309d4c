// Which instruction-set level serves.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mtlkit {

// The levels that this machine can run, lowest first.
std::vector<std::string> cpu_levels();

// The kernels in use: the highest level, unless MTLKIT_CPU_ISA or set_cpu_level asked for another.
const CpuKernels& cpu_kernels();

// Asks for a level; false if there is no such level on this machine.
bool set_cpu_level(const std::string& level);

}  // namespace mtlkit
