// What the Python module offers of the CUDA kernels: tensors as in arguments.h, the stream as an integer. A function
// returns a cudaError_t whose text is cuda_error_string's.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cuda/bindings_norm_conv.h"
#include "cuda/bindings_scan.h"
#include "cuda/launchers.h"

namespace mtlkit {

inline void bind_cuda(pybind11::module_& m) {
  m.attr("cuda_toolkit") =
      std::to_string(cuda::toolkit_version() / 1000) + "." + std::to_string(cuda::toolkit_version() % 1000 / 10);
  m.def("cuda_error_string", &cuda::error_string, "The text of a cudaError_t.");
  cuda::bind_scans(m);
  cuda::bind_norm_conv(m);
}

}  // namespace mtlkit
