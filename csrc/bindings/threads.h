// Kernels called from Python run on the threads of the OpenMP runtime that PyTorch has loaded. The module itself does
// not link OpenMP: a second runtime in a process competes with the first for the processors, and some runtimes then
// abort.
#pragma once

#include <pybind11/pybind11.h>

namespace mtlkit {

// Makes PyTorch's threads, or a pool if there are none, the process's pool, and adds the functions that report which.
void bind_threads(pybind11::module_& m);

}  // namespace mtlkit
