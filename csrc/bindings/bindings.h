// What the Python module consists of. Python has validated and allocated; here addresses and strides become the
// kernels' arguments.
#pragma once

#include <pybind11/pybind11.h>

namespace mtlkit {

void bind_cpu(pybind11::module_& m);

// The functions whose names start with cuda_. They take the stream as an integer.
void bind_cuda(pybind11::module_& m);

}  // namespace mtlkit
