// What the Python module offers of the CUDA kernels. A function returns a cudaError_t whose text is
// cuda_error_string's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cuda/launchers.h"

namespace mtlkit {
namespace cuda {
namespace {

using Sizes = std::array<int64_t, 6>;
using Plan = std::array<int64_t, 6>;
using SS2DPlanNumbers = std::array<int64_t, 10>;
using Buffers = std::array<uintptr_t, 7>;

float* floats(uintptr_t value) { return reinterpret_cast<float*>(value); }

SS2DShape ss2d_shape(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]}; }

// `gpu`: multiprocessors, and bytes of shared memory that a block may have.
std::pair<int64_t, int64_t> ss2d_tiling(int64_t states, int64_t rank, std::pair<int64_t, int64_t> gpu) {
  const SS2DTiling tiling = ss2d_tiling(states, rank, Gpu{gpu.first, gpu.second});
  return {tiling.states, tiling.tokens};
}

SS2DPlanNumbers ss2d_plan(const Sizes& sizes, std::pair<int64_t, int64_t> gpu, bool backward) {
  const SS2DPlan plan = plan_ss2d(ss2d_shape(sizes), Gpu{gpu.first, gpu.second}, backward);
  return {plan.layout, plan.padded_states, plan.tiles,        plan.channel_blocks, plan.chunk_tiles,
          plan.chunks, plan.images,        plan.window_tiles, plan.pixels,         plan.pairs};
}

// `inputs`: u and x_dbl. `buffers`: addresses of dt_weight, dt_bias, A_logs, Ds, checkpoints, ends and steps.
SS2D ss2d_arguments(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs,
                    const Buffers& buffers) {
  SS2D p{};
  p.shape = ss2d_shape(sizes);
  p.plan = {plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8], plan[9]};
  p.u = tensor<4>(inputs[0]);
  p.x_dbl = tensor<5>(inputs[1]);
  p.dt_weight = floats(buffers[0]);
  p.dt_bias = floats(buffers[1]);
  p.A_logs = floats(buffers[2]);
  p.Ds = floats(buffers[3]);
  p.checkpoints = floats(buffers[4]);
  p.ends = floats(buffers[5]);
  p.steps = floats(buffers[6]);
  return p;
}

int ss2d_forward(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs, const Buffers& buffers,
                 const std::array<uintptr_t, 2>& maps, uintptr_t stream) {
  const SS2DForward params{ss2d_arguments(sizes, plan, inputs, buffers), {floats(maps[0]), floats(maps[1])}};
  pybind11::gil_scoped_release release;
  return launch_ss2d_fwd(params, address(stream));
}

// `outputs`: addresses of the gradient of x_dbl, the two maps, carries, parts, sums, and the gradients of A_logs,
// dt_weight, dt_bias and Ds.
int ss2d_backward(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs,
                  const Buffers& buffers, const pybind11::object& dy, const std::array<uintptr_t, 10>& outputs,
                  uintptr_t stream) {
  const SS2DBackward params{ss2d_arguments(sizes, plan, inputs, buffers),
                            tensor<4>(dy),
                            address(outputs[0]),
                            {floats(outputs[1]), floats(outputs[2])},
                            floats(outputs[3]),
                            floats(outputs[4]),
                            floats(outputs[5]),
                            floats(outputs[6]),
                            floats(outputs[7]),
                            floats(outputs[8]),
                            floats(outputs[9])};
  pybind11::gil_scoped_release release;
  return launch_ss2d_bwd(params, address(stream));
}

SelectiveScanShape selective_scan_shape(const std::array<int64_t, 5>& sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

Plan selective_scan_plan(const std::array<int64_t, 5>& sizes, bool constant, std::pair<int64_t, int64_t> gpu) {
  const auto plan = plan_selective_scan(selective_scan_shape(sizes), constant, Gpu{gpu.first, gpu.second});
  return {plan.layout, plan.padded_states, plan.tile_tokens, plan.group_blocks, plan.chunk_tiles, plan.chunks};
}

// `inputs`: u, delta, B and C. `flags`: whether B and C vary, and softplus. `buffers`: addresses of A, D, delta_bias,
// checkpoints, ends and steps.
SelectiveScan selective_scan_arguments(const std::array<int64_t, 5>& sizes, const Plan& plan,
                                       const pybind11::tuple& inputs, const std::array<bool, 3>& flags,
                                       const std::array<uintptr_t, 6>& buffers) {
  SelectiveScan p{};
  p.shape = selective_scan_shape(sizes);
  p.plan = {plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]};
  p.tiles = plan[2] > 0 ? ceil_div(p.shape.tokens, plan[2]) : 0;
  p.u = tensor<3>(inputs[0]);
  p.delta = tensor<3>(inputs[1]);
  p.B = tensor<4>(inputs[2]);
  p.C = tensor<4>(inputs[3]);
  p.variable_B = flags[0];
  p.variable_C = flags[1];
  p.delta_softplus = flags[2];
  p.A = floats(buffers[0]);
  p.D = floats(buffers[1]);
  p.delta_bias = floats(buffers[2]);
  p.checkpoints = floats(buffers[3]);
  p.ends = floats(buffers[4]);
  p.steps = floats(buffers[5]);
  return p;
}

int selective_scan_forward(const std::array<int64_t, 5>& sizes, const Plan& plan, const pybind11::tuple& inputs,
                           const std::array<bool, 3>& flags, const std::array<uintptr_t, 6>& buffers,
                           const pybind11::object& z, const pybind11::object& out, uintptr_t ungated,
                           uintptr_t last_state, uintptr_t stream) {
  const SelectiveScanForward params{selective_scan_arguments(sizes, plan, inputs, flags, buffers), tensor<3>(z),
                                    tensor<3>(out), floats(ungated), floats(last_state)};
  pybind11::gil_scoped_release release;
  return launch_selective_scan_fwd(params, address(stream));
}

// `gradients`: dout, z, the gradient of the last state, du, ddelta and dz. `outputs`: addresses of the ungated output,
// drows and dparameters.
int selective_scan_backward(const std::array<int64_t, 5>& sizes, const Plan& plan, const pybind11::tuple& inputs,
                            const std::array<bool, 3>& flags, const std::array<uintptr_t, 6>& buffers,
                            const pybind11::tuple& gradients, const std::array<uintptr_t, 3>& outputs,
                            uintptr_t stream) {
  SelectiveScanBackward params{};
  params.scan = selective_scan_arguments(sizes, plan, inputs, flags, buffers);
  params.dout = tensor<3>(gradients[0]);
  params.z = tensor<3>(gradients[1]);
  params.dlast_state = tensor<3>(gradients[2]);
  params.du = tensor<3>(gradients[3]);
  params.ddelta = tensor<3>(gradients[4]);
  params.dz = tensor<3>(gradients[5]);
  params.ungated = floats(outputs[0]);
  params.drows = floats(outputs[1]);
  params.dparameters = floats(outputs[2]);
  pybind11::gil_scoped_release release;
  return launch_selective_scan_bwd(params, address(stream));
}

// The address of float parameters that lie side by side, null for none.
template <int kRank>
const float* parameters(const pybind11::object& object) {
  const Tensor<kRank> result = tensor<kRank>(object);
  if (result && result.dtype != DType::kFloat32) throw pybind11::value_error("float32 parameters were expected");
  return static_cast<const float*>(result.data);
}

// `inputs`: x, weight, bias and z.
NormGate norm_gate_arguments(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps) {
  NormGate p{};
  p.shape = {rows, channels};
  p.x = tensor<2>(inputs[0]);
  p.weight = parameters<1>(inputs[1]);
  p.bias = parameters<1>(inputs[2]);
  p.z = tensor<2>(inputs[3]);
  p.eps = static_cast<float>(eps);
  return p;
}

int norm_gate_forward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps, uintptr_t stream,
                      const pybind11::object& addend, const pybind11::object& out) {
  const NormGateForward params{norm_gate_arguments(rows, channels, inputs, eps), tensor<2>(addend), tensor<2>(out)};
  pybind11::gil_scoped_release release;
  return launch_norm_gate_fwd(params, address(stream));
}

int norm_gate_backward(int64_t rows, int64_t channels, const pybind11::tuple& inputs, double eps, uintptr_t stream,
                       const pybind11::object& dout, const pybind11::object& dx, const pybind11::object& dz,
                       uintptr_t partials, int64_t blocks) {
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
DwconvSilu dwconv_silu_arguments(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs) {
  return {{sizes[0], sizes[1], sizes[2], sizes[3]},
          tensor<4>(inputs[0]),
          parameters<3>(inputs[1]),
          parameters<1>(inputs[2])};
}

int dwconv_silu_forward(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs, uintptr_t stream,
                        const pybind11::object& y) {
  const DwconvSiluForward params{dwconv_silu_arguments(sizes, inputs), tensor<4>(y)};
  pybind11::gil_scoped_release release;
  return launch_dwconv_silu_fwd(params, address(stream));
}

int dwconv_silu_backward(const std::array<int64_t, 4>& sizes, const pybind11::tuple& inputs, uintptr_t stream,
                         const pybind11::object& dy, const pybind11::object& dx, uintptr_t partials, int64_t parts) {
  const DwconvSiluBackward params{dwconv_silu_arguments(sizes, inputs), tensor<4>(dy), tensor<4>(dx),
                                  static_cast<float*>(address(partials)), parts};
  pybind11::gil_scoped_release release;
  return launch_dwconv_silu_bwd(params, address(stream));
}

}  // namespace
}  // namespace cuda

void bind_cuda(pybind11::module_& m) {
  using namespace cuda;
  m.attr("cuda_toolkit") =
      std::to_string(toolkit_version() / 1000) + "." + std::to_string(toolkit_version() % 1000 / 10);
  m.def("cuda_error_string", &cuda::error_string, "The text of a cudaError_t.");

  m.def("cuda_ss2d_tiling", pybind11::overload_cast<int64_t, int64_t, std::pair<int64_t, int64_t>>(&ss2d_tiling),
        "Padded states and tokens per tile, 0 where no kernel serves.");
  m.def("cuda_ss2d_plan", &ss2d_plan,
        "Layout, padded states, tiles, channel blocks, tiles per chunk, chunks, images and tiles of a chunk per launch "
        "and an image's pixels in one; a layout of -1 for none.");
  m.def("cuda_ss2d_forward", &ss2d_forward);
  m.def("cuda_ss2d_backward", &ss2d_backward);
  m.def("cuda_selective_scan_plan", &selective_scan_plan,
        "Layout, padded states, tokens per tile, blocks along a group, tiles per chunk and chunks.");
  m.def("cuda_selective_scan_forward", &selective_scan_forward);
  m.def("cuda_selective_scan_backward", &selective_scan_backward);
  m.def("cuda_norm_gate_blocks", &norm_gate_blocks, "Rows of partial sums that a backward pass leaves.");
  m.def("cuda_norm_gate_forward", &norm_gate_forward);
  m.def("cuda_norm_gate_backward", &norm_gate_backward);
  m.def("cuda_dwconv_silu_parts", &dwconv_silu_parts, "Rows of partial sums that a backward pass leaves.");
  m.def("cuda_dwconv_silu_forward", &dwconv_silu_forward);
  m.def("cuda_dwconv_silu_backward", &dwconv_silu_backward);
}

}  // namespace mtlkit
