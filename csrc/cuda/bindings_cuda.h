// What the Python module offers of the CUDA kernels. Addresses, dtypes and the stream come as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cuda/launchers.h"

namespace mtlkit::cuda {

inline Tensor<2> rows_at(uintptr_t address, int dtype, int64_t row_stride) {
  return {reinterpret_cast<void*>(address), static_cast<DType>(dtype), {row_stride, 1}};
}

inline int norm_gate_fwd(int64_t rows, int64_t channels, uintptr_t x, int x_dtype, int64_t x_stride, uintptr_t z,
                         int64_t z_stride, uintptr_t weight, uintptr_t bias, uintptr_t out, int out_dtype,
                         int64_t out_stride, float eps, uintptr_t stream) {
  NormGateForward params;
  params.rows = rows;
  params.channels = channels;
  params.x = rows_at(x, x_dtype, x_stride);
  params.z = rows_at(z, out_dtype, z_stride);
  params.weight = reinterpret_cast<const float*>(weight);
  params.bias = reinterpret_cast<const float*>(bias);
  params.out = rows_at(out, out_dtype, out_stride);
  params.eps = eps;
  return launch_norm_gate_fwd(params, reinterpret_cast<void*>(stream));
}

}  // namespace mtlkit::cuda

namespace mtlkit {

inline void bind_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  m.attr("cuda_toolkit") =
      std::to_string(cuda::toolkit_version() / 1000) + "." + std::to_string(cuda::toolkit_version() % 1000 / 10);
  m.def("cuda_error_string", &cuda::error_string, "The text of a cudaError_t.");
  m.def(
      "cuda_norm_gate_fwd", &cuda::norm_gate_fwd, py::kw_only(), py::arg("rows"), py::arg("channels"), py::arg("x"),
      py::arg("x_dtype"), py::arg("x_stride"), py::arg("z"), py::arg("z_stride"), py::arg("weight"), py::arg("bias"),
      py::arg("out"), py::arg("out_dtype"), py::arg("out_stride"), py::arg("eps"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(),
      "LayerNorm times SiLU(z): strides in elements between rows, address 0 for what is absent. A cudaError_t as int.");
}

}  // namespace mtlkit
