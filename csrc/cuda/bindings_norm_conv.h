// What the Python module offers of the CUDA kernels around the scan: norm_gate and dwconv_silu.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "arguments.h"
#include "cuda/launchers.h"

namespace mtlkit::cuda {

// The address of float parameters that lie side by side, null for none.
template <int kRank>
const float* parameters(const pybind11::object& object) {
  const Tensor<kRank> result = tensor<kRank>(object);
  if (result && result.dtype != DType::kFloat32) throw pybind11::value_error("float32 parameters were expected");
  return static_cast<const float*>(result.data);
}

// `inputs`: x, weight, bias and z.
inline NormGate norm_gate_arguments(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps) {
  NormGate p{};
  p.rows = rows;
  p.channels = channels;
  p.x = tensor<2>(inputs[0]);
  p.weight = parameters<1>(inputs[1]);
  p.bias = parameters<1>(inputs[2]);
  p.z = tensor<2>(inputs[3]);
  p.eps = static_cast<float>(eps);
  return p;
}

inline int norm_gate_forward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps,
                             uintptr_t stream, const pybind11::object& addend, const pybind11::object& out) {
  const NormGateForward params{norm_gate_arguments(rows, channels, inputs, eps), tensor<2>(addend), tensor<2>(out)};
  pybind11::gil_scoped_release release;
  return launch_norm_gate_fwd(params, address(stream));
}

inline int norm_gate_backward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps,
                              uintptr_t stream, const pybind11::object& dout, const pybind11::object& dx,
                              const pybind11::object& dz, uintptr_t partials, int64_t blocks) {
  NormGateBackward params{};
  params.norm = norm_gate_arguments(rows, channels, inputs, eps);
  params.dout = tensor<2>(dout);
  params.dx = tensor<2>(dx);
  params.dz = tensor<2>(dz);
  params.partials = static_cast<float*>(address(partials));
  params.blocks = blocks;
  pybind11::gil_scoped_release release;
  return launch_norm_gate_bwd(params, address(stream));
}

// `sizes`: B, D, H, W. `inputs`: x, weight, bias.
inline DwconvSilu dwconv_silu_arguments(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs) {
  return {
      sizes[0], sizes[1], sizes[2], sizes[3], tensor<4>(inputs[0]), parameters<3>(inputs[1]), parameters<1>(inputs[2])};
}

inline int dwconv_silu_forward(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs, uintptr_t stream,
                               const pybind11::object& y) {
  const DwconvSiluForward params{dwconv_silu_arguments(sizes, inputs), tensor<4>(y)};
  pybind11::gil_scoped_release release;
  return launch_dwconv_silu_fwd(params, address(stream));
}

inline int dwconv_silu_backward(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs, uintptr_t stream,
                                const pybind11::object& dy, const pybind11::object& dx, uintptr_t partials,
                                int64_t parts) {
  const DwconvSiluBackward params{dwconv_silu_arguments(sizes, inputs), tensor<4>(dy), tensor<4>(dx),
                                  static_cast<float*>(address(partials)), parts};
  pybind11::gil_scoped_release release;
  return launch_dwconv_silu_bwd(params, address(stream));
}

inline void bind_norm_conv(pybind11::module_& m) {
  m.def("cuda_norm_gate_blocks", &norm_gate_blocks, "Rows of partial sums that a backward pass leaves.");
  m.def("cuda_norm_gate_forward", &norm_gate_forward);
  m.def("cuda_norm_gate_backward", &norm_gate_backward);
  m.def("cuda_dwconv_silu_parts", &dwconv_silu_parts, "Rows of partial sums that a backward pass leaves.");
  m.def("cuda_dwconv_silu_forward", &dwconv_silu_forward);
  m.def("cuda_dwconv_silu_backward", &dwconv_silu_backward);
}

}  // namespace mtlkit::cuda
