// The parts of the Python module. Python has already validated the arguments and allocated the outputs; the bindings
// convert addresses and strides to the kernels' arguments.
#pragma once

#include <pybind11/pybind11.h>

namespace mtlkit {

void bind_cpu(pybind11::module_& m);

// Adds the functions whose names start with cuda_. They take the stream as an integer.
void bind_cuda(pybind11::module_& m);

}  // namespace mtlkit
