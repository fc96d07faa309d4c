// What the Python module offers of the CPU kernels. A function returns 0 or a status whose text is error_string's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/huge_pages.h"

namespace py = pybind11;

namespace mtlkit {
namespace {

using Sizes6 = std::array<int64_t, 6>;
using Sizes5 = std::array<int64_t, 5>;
using Sizes4 = std::array<int64_t, 4>;

SS2DForward ss2d_arguments(const Sizes6& sizes, const py::tuple& inputs, uintptr_t x_dbl, uintptr_t checkpoints,
                           bool use_double, int threads) {
  SS2DForward p{};
  p.shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  p.u = tensor<4>(inputs[0]);
  p.dt_weight = tensor<3>(inputs[1]);
  p.dt_bias = tensor<2>(inputs[2]);
  p.A_logs = tensor<2>(inputs[3]);
  p.Ds = tensor<1>(inputs[4]);
  p.x_dbl = address(x_dbl);
  p.checkpoints = address(checkpoints);
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int ss2d_forward(const Sizes6& sizes, const py::tuple& inputs, uintptr_t x_dbl, uintptr_t checkpoints, bool use_double,
                 int threads, const py::object& y) {
  SS2DForward p = ss2d_arguments(sizes, inputs, x_dbl, checkpoints, use_double, threads);
  p.y = tensor<4>(y);
  py::gil_scoped_release release;
  return cpu_kernels().ss2d_forward(p);
}

int ss2d_backward(const Sizes6& sizes, const py::tuple& inputs, uintptr_t x_dbl, uintptr_t checkpoints, bool use_double,
                  int threads, const py::object& dy, const py::object& du, uintptr_t dx_dbl, uintptr_t ddt_weight,
                  uintptr_t ddt_bias, uintptr_t dA_logs, uintptr_t dDs) {
  SS2DBackward p{};
  p.forward = ss2d_arguments(sizes, inputs, x_dbl, checkpoints, use_double, threads);
  p.dy = tensor<4>(dy);
  p.du = tensor<4>(du);
  p.dx_dbl = address(dx_dbl);
  p.ddt_weight = address(ddt_weight);
  p.ddt_bias = address(ddt_bias);
  p.dA_logs = address(dA_logs);
  p.dDs = address(dDs);
  py::gil_scoped_release release;
  return cpu_kernels().ss2d_backward(p);
}

SelectiveScanForward selective_scan_arguments(const Sizes5& sizes, const py::tuple& inputs, bool delta_softplus,
                                              bool variable_B, bool variable_C, uintptr_t checkpoints, bool use_double,
                                              int threads) {
  SelectiveScanForward p{};
  p.shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  p.u = tensor<3>(inputs[0]);
  p.delta = tensor<3>(inputs[1]);
  p.A = tensor<2>(inputs[2]);
  p.B = tensor<4>(inputs[3]);
  p.C = tensor<4>(inputs[4]);
  p.D = tensor<1>(inputs[5]);
  p.z = tensor<3>(inputs[6]);
  p.delta_bias = tensor<1>(inputs[7]);
  p.variable_B = variable_B;
  p.variable_C = variable_C;
  p.delta_softplus = delta_softplus;
  p.checkpoints = address(checkpoints);
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int selective_scan_forward(const Sizes5& sizes, const py::tuple& inputs, bool delta_softplus, bool variable_B,
                           bool variable_C, uintptr_t checkpoints, bool use_double, int threads, const py::object& out,
                           uintptr_t last_state) {
  SelectiveScanForward p =
      selective_scan_arguments(sizes, inputs, delta_softplus, variable_B, variable_C, checkpoints, use_double, threads);
  p.out = tensor<3>(out);
  p.last_state = address(last_state);
  py::gil_scoped_release release;
  return cpu_kernels().selective_scan_forward(p);
}

int selective_scan_backward(const Sizes5& sizes, const py::tuple& inputs, bool delta_softplus, bool variable_B,
                            bool variable_C, uintptr_t checkpoints, bool use_double, int threads,
                            const py::object& dout, const py::object& dlast_state, const py::object& du,
                            const py::object& ddelta, const py::object& dz, uintptr_t dA, uintptr_t dB, uintptr_t dC,
                            uintptr_t dD, uintptr_t ddelta_bias) {
  SelectiveScanBackward p{};
  p.forward =
      selective_scan_arguments(sizes, inputs, delta_softplus, variable_B, variable_C, checkpoints, use_double, threads);
  p.dout = tensor<3>(dout);
  p.dlast_state = tensor<3>(dlast_state);
  p.du = tensor<3>(du);
  p.ddelta = tensor<3>(ddelta);
  p.dz = tensor<3>(dz);
  p.dA = address(dA);
  p.dB = address(dB);
  p.dC = address(dC);
  p.dD = address(dD);
  p.ddelta_bias = address(ddelta_bias);
  py::gil_scoped_release release;
  return cpu_kernels().selective_scan_backward(p);
}

DwconvSiluForward dwconv_silu_arguments(const Sizes4& sizes, const py::tuple& inputs, bool use_double, int threads) {
  DwconvSiluForward p{};
  p.shape = {sizes[0], sizes[1], sizes[2], sizes[3]};
  p.x = tensor<4>(inputs[0]);
  p.weight = tensor<3>(inputs[1]);
  p.bias = tensor<1>(inputs[2]);
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int dwconv_silu_forward(const Sizes4& sizes, const py::tuple& inputs, bool use_double, int threads,
                        const py::object& y) {
  DwconvSiluForward p = dwconv_silu_arguments(sizes, inputs, use_double, threads);
  p.y = tensor<4>(y);
  py::gil_scoped_release release;
  return cpu_kernels().dwconv_silu_forward(p);
}

int dwconv_silu_backward(const Sizes4& sizes, const py::tuple& inputs, bool use_double, int threads,
                         const py::object& dy, const py::object& dx, uintptr_t dweight, uintptr_t dbias) {
  DwconvSiluBackward p{};
  p.forward = dwconv_silu_arguments(sizes, inputs, use_double, threads);
  p.dy = tensor<4>(dy);
  p.dx = tensor<4>(dx);
  p.dweight = address(dweight);
  p.dbias = address(dbias);
  py::gil_scoped_release release;
  return cpu_kernels().dwconv_silu_backward(p);
}

NormGateForward norm_gate_arguments(int64_t rows, int64_t channels, const py::tuple& inputs, double eps,
                                    bool use_double, int threads) {
  NormGateForward p{};
  p.shape = {rows, channels};
  p.x = tensor<2>(inputs[0]);
  p.weight = tensor<1>(inputs[1]);
  p.bias = tensor<1>(inputs[2]);
  p.z = tensor<2>(inputs[3]);
  p.eps = eps;
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int norm_gate_forward(int64_t rows, int64_t channels, const py::tuple& inputs, double eps, bool use_double, int threads,
                      const py::object& out) {
  NormGateForward p = norm_gate_arguments(rows, channels, inputs, eps, use_double, threads);
  p.out = tensor<2>(out);
  py::gil_scoped_release release;
  return cpu_kernels().norm_gate_forward(p);
}

int norm_gate_backward(int64_t rows, int64_t channels, const py::tuple& inputs, double eps, bool use_double,
                       int threads, const py::object& dout, const py::object& dx, const py::object& dz,
                       uintptr_t dweight, uintptr_t dbias) {
  NormGateBackward p{};
  p.forward = norm_gate_arguments(rows, channels, inputs, eps, use_double, threads);
  p.dout = tensor<2>(dout);
  p.dx = tensor<2>(dx);
  p.dz = tensor<2>(dz);
  p.dweight = address(dweight);
  p.dbias = address(dbias);
  py::gil_scoped_release release;
  return cpu_kernels().norm_gate_backward(p);
}

InteractionReduceForward interaction_arguments(const Sizes5& sizes, const py::tuple& inputs, uintptr_t mean,
                                               uintptr_t pooled, uintptr_t softmax, uintptr_t signs, bool use_double,
                                               int threads) {
  InteractionReduceForward p{};
  p.shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  p.x = tensor<3>(inputs[0]);
  p.weight = tensor<2>(inputs[1]);
  p.bias = tensor<1>(inputs[2]);
  p.attn = tensor<1>(inputs[3]);
  p.mean = address(mean);
  p.pooled = address(pooled);
  p.softmax = address(softmax);
  p.signs = static_cast<uint16_t*>(address(signs));
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int interaction_reduce_forward(const Sizes5& sizes, const py::tuple& inputs, uintptr_t mean, uintptr_t pooled,
                               uintptr_t softmax, uintptr_t signs, bool use_double, int threads, uintptr_t variance,
                               uintptr_t energy) {
  InteractionReduceForward p = interaction_arguments(sizes, inputs, mean, pooled, softmax, signs, use_double, threads);
  p.variance = address(variance);
  p.energy = address(energy);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_reduce_forward(p);
}

int interaction_reduce_backward(const Sizes5& sizes, const py::tuple& inputs, uintptr_t mean, uintptr_t pooled,
                                uintptr_t softmax, uintptr_t signs, bool use_double, int threads, const py::object& dy,
                                uintptr_t factors, uintptr_t dmean, uintptr_t dvariance, uintptr_t denergy,
                                uintptr_t dpooled, const py::object& dx, uintptr_t dweight, uintptr_t dbias,
                                uintptr_t dattn) {
  InteractionReduceBackward p{};
  p.forward = interaction_arguments(sizes, inputs, mean, pooled, softmax, signs, use_double, threads);
  p.dy = tensor<3>(dy);
  p.factors = address(factors);
  p.dmean = address(dmean);
  p.dvariance = address(dvariance);
  p.denergy = address(denergy);
  p.dpooled = address(dpooled);
  p.dx = tensor<3>(dx);
  p.dweight = address(dweight);
  p.dbias = address(dbias);
  p.dattn = address(dattn);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_reduce_backward(p);
}

InteractionScaleForward interaction_scale_arguments(const Sizes4& sizes, const py::object& x, bool use_double,
                                                    int threads) {
  InteractionScaleForward p{};
  p.shape = {sizes[0], sizes[1], sizes[2], sizes[3], 0};
  p.x = tensor<3>(x);
  p.use_double = use_double;
  p.threads = threads;
  return p;
}

int interaction_scale_forward(const Sizes4& sizes, const py::object& x, bool use_double, int threads, uintptr_t factors,
                              const py::object& y) {
  InteractionScaleForward p = interaction_scale_arguments(sizes, x, use_double, threads);
  p.factors = address(factors);
  p.y = tensor<3>(y);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_scale_forward(p);
}

int interaction_scale_backward(const Sizes4& sizes, const py::object& x, bool use_double, int threads,
                               const py::object& dy, uintptr_t dfactors) {
  InteractionScaleBackward p{};
  p.forward = interaction_scale_arguments(sizes, x, use_double, threads);
  p.dy = tensor<3>(dy);
  p.dfactors = address(dfactors);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_scale_backward(p);
}

template <size_t kCount>
std::array<void*, kCount> addresses(const std::array<uintptr_t, kCount>& values) {
  std::array<void*, kCount> found;
  for (size_t i = 0; i < kCount; ++i) found[i] = address(values[i]);
  return found;
}

using WeightAddresses = std::array<uintptr_t, kGatingWeights>;

InteractionGatingForward interaction_gating_arguments(const Sizes6& sizes, const std::array<double, 3>& numbers,
                                                      bool three, bool training, bool use_double, int threads,
                                                      const std::array<uintptr_t, 8>& inputs,
                                                      const WeightAddresses& weights,
                                                      const std::array<uintptr_t, 7>& results) {
  InteractionGatingForward p{};
  p.batch = sizes[0], p.channels = sizes[1], p.projected = sizes[2];
  p.features = sizes[3], p.hidden = sizes[4], p.queries = sizes[5];
  p.tau = numbers[0], p.momentum = numbers[1], p.eps = numbers[2];
  p.three = three;
  p.training = training;
  p.use_double = use_double;
  p.threads = threads;
  p.mean = address(inputs[0]);
  p.variance = address(inputs[1]);
  p.energy = address(inputs[2]);
  p.pooled = address(inputs[3]);
  p.f = address(inputs[4]);
  p.normaliser = address(inputs[5]);
  p.norm_mean = address(inputs[6]);
  p.norm_var = address(inputs[7]);
  p.weights = addresses(weights);
  p.mu = address(results[0]);
  p.enhanced = address(results[1]);
  p.gates = address(results[2]);
  for (int i = 0; i < 3; ++i) p.signals[i] = address(results[3 + i]);
  p.kept = address(results[6]);
  return p;
}

int interaction_gating_forward(const Sizes6& sizes, const std::array<double, 3>& numbers, bool three, bool training,
                               bool use_double, int threads, const std::array<uintptr_t, 8>& inputs,
                               const WeightAddresses& weights, const std::array<uintptr_t, 7>& results,
                               uintptr_t factors, uintptr_t clf) {
  InteractionGatingForward p =
      interaction_gating_arguments(sizes, numbers, three, training, use_double, threads, inputs, weights, results);
  p.factors = address(factors);
  p.clf = address(clf);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_gating_forward(p);
}

int interaction_gating_backward(const Sizes6& sizes, const std::array<double, 3>& numbers, bool three, bool training,
                                bool use_double, int threads, const std::array<uintptr_t, 8>& inputs,
                                const WeightAddresses& weights, const std::array<uintptr_t, 7>& results,
                                const std::array<uintptr_t, 8>& douts, const std::array<uintptr_t, 5>& dinputs,
                                const WeightAddresses& dweights) {
  InteractionGatingBackward q{};
  q.forward =
      interaction_gating_arguments(sizes, numbers, three, training, use_double, threads, inputs, weights, results);
  q.dfactors = address(douts[0]);
  q.dmu = address(douts[1]);
  q.dclf = address(douts[2]);
  q.denhanced = address(douts[3]);
  q.dgates = address(douts[4]);
  for (int i = 0; i < 3; ++i) q.dsignals[i] = address(douts[5 + i]);
  q.dmean = address(dinputs[0]);
  q.dvariance = address(dinputs[1]);
  q.denergy = address(dinputs[2]);
  q.dpooled = address(dinputs[3]);
  q.df = address(dinputs[4]);
  q.dweights = addresses(dweights);
  py::gil_scoped_release release;
  return cpu_kernels().interaction_gating_backward(q);
}

const char* error_string(int status) {
  switch (status) {
    case kOk:
      return "no error";
    case kOutOfMemory:
      return "out of memory for scratch buffers";
    default:
      return "unknown status";
  }
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.attr("checkpoint_tokens") = kCheckpointTokens;
  m.def("error_string", &error_string, "The text of a status that a CPU function returned.");

  m.def("prefer_large_pages", &prefer_large_pages, "Asks for large pages behind a block that is still to be written.");

  m.def("cpu_isa", [] { return std::string(cpu_kernels().isa); }, "The instruction-set level in use.");
  m.def("cpu_isa_levels", &cpu_levels, "The levels that this machine can run, lowest first.");
  m.def("set_cpu_isa", [](const std::string& level) {
    if (!set_cpu_level(level)) throw py::value_error("no instruction-set level '" + level + "' on this machine");
  });
  m.def(
      "peak_rate",
      [](int64_t tokens, int threads) {
        py::gil_scoped_release release;
        return cpu_kernels().peak_rate(tokens, threads);
      },
      "Runs state updates alone and returns how many they were.");

  m.def("ss2d_forward", &ss2d_forward);
  m.def("ss2d_backward", &ss2d_backward);
  m.def("selective_scan_forward", &selective_scan_forward);
  m.def("selective_scan_backward", &selective_scan_backward);
  m.def("dwconv_silu_forward", &dwconv_silu_forward);
  m.def("dwconv_silu_backward", &dwconv_silu_backward);
  m.def("norm_gate_forward", &norm_gate_forward);
  m.def("norm_gate_backward", &norm_gate_backward);
  m.def(
      "interaction_block",
      [] { return py::make_tuple(cpu_kernels().interaction_rows, cpu_kernels().interaction_bytes); },
      "Rows of a block and bytes of a vector, which the layout of the projection's signs depends on.");
  m.def("interaction_reduce_forward", &interaction_reduce_forward);
  m.def("interaction_reduce_backward", &interaction_reduce_backward);
  m.def("interaction_scale_forward", &interaction_scale_forward);
  m.def("interaction_scale_backward", &interaction_scale_backward);
  m.def("interaction_gating_forward", &interaction_gating_forward);
  m.def("interaction_gating_backward", &interaction_gating_backward);
}

}  // namespace mtlkit
