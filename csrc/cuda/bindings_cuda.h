// What the Python module offers of the CUDA kernels: tensors as in arguments.h, the stream as an integer. A function
// returns a cudaError_t whose text is cuda_error_string's.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "arguments.h"
#include "cuda/bindings_scan.h"
#include "cuda/launchers.h"

namespace mtlkit::cuda {

inline void* stream_at(uintptr_t value) { return reinterpret_cast<void*>(value); }
inline float* floats_at(uintptr_t value) { return reinterpret_cast<float*>(value); }

// The address of float parameters that lie side by side, null for none.
template <int kRank>
const float* parameters(const pybind11::object& object) {
  const Tensor<kRank> result = tensor<kRank>(object);
  if (result && result.dtype != DType::kFloat32) throw pybind11::value_error("float32 parameters were expected");
  return static_cast<const float*>(result.data);
}

inline NormGate norm_gate_arguments(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps) {
  NormGate p{};
  p.rows = rows;
  p.channels = channels;
  p.x = tensor<2>(inputs[0]);
  p.weight = parameters<1>(inputs[1]);
  p.bias = parameters<1>(inputs[2]);
  p.z = tensor<2>(inputs[3]);
  p.x2 = tensor<2>(inputs[4]);
  p.eps = static_cast<float>(eps);
  return p;
}

inline int norm_gate_forward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps,
                             uintptr_t stream, const pybind11::object& out) {
  const NormGateForward p{norm_gate_arguments(rows, channels, inputs, eps), tensor<2>(out)};
  pybind11::gil_scoped_release release;
  return launch_norm_gate_fwd(p, stream_at(stream));
}

inline int norm_gate_backward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps,
                              uintptr_t stream, const pybind11::object& dout, const pybind11::object& dx,
                              const pybind11::object& dz, uintptr_t partials, int64_t blocks) {
  NormGateBackward p{};
  p.norm = norm_gate_arguments(rows, channels, inputs, eps);
  p.dout = tensor<2>(dout);
  p.dx = tensor<2>(dx);
  p.dz = tensor<2>(dz);
  p.partials = floats_at(partials);
  p.blocks = blocks;
  pybind11::gil_scoped_release release;
  return launch_norm_gate_bwd(p, stream_at(stream));
}

}  // namespace mtlkit::cuda

namespace mtlkit {

inline void bind_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  m.attr("cuda_toolkit") =
      std::to_string(cuda::toolkit_version() / 1000) + "." + std::to_string(cuda::toolkit_version() % 1000 / 10);
  m.def("cuda_error_string", &cuda::error_string, "The text of a cudaError_t.");

  m.def("cuda_norm_gate_blocks", &cuda::norm_gate_blocks, "How many rows of partial sums a backward pass leaves.");
  m.def("cuda_norm_gate_forward", &cuda::norm_gate_forward);
  m.def("cuda_norm_gate_backward", &cuda::norm_gate_backward);
  cuda::bind_scans(m);
}

}  // namespace mtlkit
