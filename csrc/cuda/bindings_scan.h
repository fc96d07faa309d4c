// What the Python module offers of the CUDA kernels of the scans.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <utility>

#include "arguments.h"
#include "cuda/launchers.h"

namespace mtlkit::cuda {

using Sizes = std::array<int64_t, 6>;
using Plan = std::array<int64_t, 6>;
using SS2DPlanNumbers = std::array<int64_t, 10>;
using Buffers = std::array<uintptr_t, 7>;

inline float* floats(uintptr_t value) { return reinterpret_cast<float*>(value); }

inline SS2DShape ss2d_shape(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]}; }

// `gpu`: multiprocessors, and bytes of shared memory that a block may have.
inline std::pair<int64_t, int64_t> ss2d_tiling(int64_t states, int64_t rank, std::pair<int64_t, int64_t> gpu) {
  const SS2DTiling tiling = ss2d_tiling(states, rank, Gpu{gpu.first, gpu.second});
  return {tiling.states, tiling.tokens};
}

inline SS2DPlanNumbers ss2d_plan(const Sizes& sizes, std::pair<int64_t, int64_t> gpu, bool backward) {
  const SS2DPlan plan = plan_ss2d(ss2d_shape(sizes), Gpu{gpu.first, gpu.second}, backward);
  return {plan.layout, plan.padded_states, plan.tiles,        plan.channel_blocks, plan.chunk_tiles,
          plan.chunks, plan.images,        plan.window_tiles, plan.pixels,         plan.pairs};
}

// `inputs`: u and x_dbl. `buffers`: addresses of dt_weight, dt_bias, A_logs, Ds, checkpoints, ends and steps.
inline SS2DCuda ss2d_arguments(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs,
                               const Buffers& buffers) {
  SS2DCuda p{};
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

inline int ss2d_forward(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs,
                        const Buffers& buffers, const std::array<uintptr_t, 2>& maps, uintptr_t stream) {
  const SS2DCudaForward params{ss2d_arguments(sizes, plan, inputs, buffers), {floats(maps[0]), floats(maps[1])}};
  pybind11::gil_scoped_release release;
  return launch_ss2d_fwd(params, address(stream));
}

// `outputs`: addresses of the gradient of x_dbl, the two maps, carries, parts, sums, and the gradients of A_logs,
// dt_weight, dt_bias and Ds.
inline int ss2d_backward(const Sizes& sizes, const SS2DPlanNumbers& plan, const pybind11::tuple& inputs,
                         const Buffers& buffers, const pybind11::object& dy, const std::array<uintptr_t, 10>& outputs,
                         uintptr_t stream) {
  const SS2DCudaBackward params{ss2d_arguments(sizes, plan, inputs, buffers),
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

inline SelectiveScanShape selective_scan_shape(const std::array<int64_t, 5>& sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

inline Plan selective_scan_plan(const std::array<int64_t, 5>& sizes, bool constant, std::pair<int64_t, int64_t> gpu) {
  const auto plan = plan_selective_scan(selective_scan_shape(sizes), constant, Gpu{gpu.first, gpu.second});
  return {plan.layout, plan.padded_states, plan.tile_tokens, plan.group_blocks, plan.chunk_tiles, plan.chunks};
}

// `inputs`: u, delta, B and C. `flags`: whether B and C vary, and softplus. `buffers`: addresses of A, D, delta_bias,
// checkpoints, ends and steps.
inline SelectiveScanCuda selective_scan_arguments(const std::array<int64_t, 5>& sizes, const Plan& plan,
                                                  const pybind11::tuple& inputs, const std::array<bool, 3>& flags,
                                                  const std::array<uintptr_t, 6>& buffers) {
  SelectiveScanCuda p{};
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

inline int selective_scan_forward(const std::array<int64_t, 5>& sizes, const Plan& plan, const pybind11::tuple& inputs,
                                  const std::array<bool, 3>& flags, const std::array<uintptr_t, 6>& buffers,
                                  const pybind11::object& z, const pybind11::object& out, uintptr_t ungated,
                                  uintptr_t last_state, uintptr_t stream) {
  const SelectiveScanCudaForward params{selective_scan_arguments(sizes, plan, inputs, flags, buffers), tensor<3>(z),
                                        tensor<3>(out), floats(ungated), floats(last_state)};
  pybind11::gil_scoped_release release;
  return launch_selective_scan_fwd(params, address(stream));
}

// `gradients`: dout, z, the gradient of the last state, du, ddelta and dz. `outputs`: addresses of the ungated output,
// drows and dparameters.
inline int selective_scan_backward(const std::array<int64_t, 5>& sizes, const Plan& plan, const pybind11::tuple& inputs,
                                   const std::array<bool, 3>& flags, const std::array<uintptr_t, 6>& buffers,
                                   const pybind11::tuple& gradients, const std::array<uintptr_t, 3>& outputs,
                                   uintptr_t stream) {
  SelectiveScanCudaBackward params{};
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

inline void bind_scans(pybind11::module_& m) {
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
}

}  // namespace mtlkit::cuda
