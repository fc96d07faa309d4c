// The threads of kernels that Python calls: those of the OpenMP that PyTorch has loaded, whichever that is. The module
// itself links no OpenMP, for a second one in a process competes with the first for the processors, and some abort.
#pragma once

#include <pybind11/pybind11.h>

namespace mtlkit {

// Makes PyTorch's threads, or a pool in their place, the process's pool, and adds the functions that tell of it.
void bind_threads(pybind11::module_& m);

}  // namespace mtlkit
