// Binds the CUDA kernels. A launch returns a cudaError_t; cuda_error_string gives its text.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/function.h"
#include "bindings/operators.h"
#include "cuda/launchers.h"

namespace py = pybind11;

namespace mtlkit {
namespace cuda {
namespace {

// The arguments of a launch, and its stream.
template <typename Params>
struct Launch {
  Params params;
  void* stream;
};

template <typename Params>
void add_launch(py::module_& m, const char* name, const char* summary, int (*launch)(const Params&, void*),
                Arguments<Launch<Params>> arguments) {
  arguments.push_back(
      argument<Launch<Params>>("stream", "a cudaStream_t, 0 for the default stream", &Launch<Params>::stream));
  add_function(m, name, summary, std::move(arguments),
               [launch](const Launch<Params>& p) { return launch(p.params, p.stream); });
}

// The input of a plan: a shape and a GPU.
template <typename Shape>
struct Problem {
  Shape shape;
  Gpu gpu;
  bool option;  // its meaning is the argument's name
};

template <typename Params>
Argument<Params> gpu_argument() {
  return tuple_of<Params>("gpu", "(multiprocessors, bytes of shared memory that a block may have)",
                          member_of<Params>(&Params::gpu), &Gpu::multiprocessors, &Gpu::shared_bytes);
}

template <typename Params>
Argument<Params> multiprocessors() {
  return argument<Params>("multiprocessors", "of the GPU", &Params::gpu, &Gpu::multiprocessors);
}

void bind_ss2d(py::module_& m) {
  using Planned = Problem<SS2DShape>;
  py::class_<SS2DTiling>(m, "SS2DTiling", py::module_local(), "How ss2d keeps states between its passes.")
      .def_readonly("states", &SS2DTiling::states, "N, rounded up; 0 where no kernel serves.")
      .def_readonly("tokens", &SS2DTiling::tokens, "Of a tile.");
  add_function(
      m, "cuda_ss2d_tiling", "The tiling for these states and rank.",
      Arguments<Planned>{argument<Planned>("states", "N", &Planned::shape, &SS2DShape::states),
                         argument<Planned>("rank", "R", &Planned::shape, &SS2DShape::rank), gpu_argument<Planned>()},
      [](const Planned& p) { return ss2d_tiling(p.shape.states, p.shape.rank, p.gpu); });

  py::class_<SS2DPlan>(m, "SS2DPlan", py::module_local(),
                       "Which kernel serves a call of ss2d, and how its work is cut.")
      .def_readonly("layout", &SS2DPlan::layout, "Index in the table of the direction; -1 for none.")
      .def_readonly("padded_states", &SS2DPlan::padded_states, "N, rounded up to what the layout keeps.")
      .def_readonly("tiles", &SS2DPlan::tiles, "Of an image.")
      .def_readonly("channel_blocks", &SS2DPlan::channel_blocks, "Blocks along D.")
      .def_readonly("chunk_tiles", &SS2DPlan::chunk_tiles, "Tiles per chunk; the last has what is left.")
      .def_readonly("chunks", &SS2DPlan::chunks, "Of an image.")
      .def_readonly("images", &SS2DPlan::images, "Per launch.")
      .def_readonly("window_tiles", &SS2DPlan::window_tiles, "Tiles of each chunk, per launch.")
      .def_readonly("pixels", &SS2DPlan::pixels, "Of an image in a launch, at most.")
      .def_readonly("pairs", &SS2DPlan::pairs, "Of opposite directions, per launch: 1 or 2.");
  add_function(m, "cuda_ss2d_plan", "The plan of a call of ss2d.",
               Arguments<Planned>{ss2d_sizes<Planned>(&Planned::shape), gpu_argument<Planned>(),
                                  argument<Planned>("backward", "whether of the backward pass", &Planned::option)},
               [](const Planned& p) { return plan_ss2d(p.shape, p.gpu, p.option); });

  const auto inputs = [](auto launch, auto to) {
    using Params = decltype(launch);
    return ss2d_inputs<Params, SS2D>(&Params::params, to) +
           Arguments<Params>{
               argument<Params>("plan", "as cuda_ss2d_plan has it", &Params::params, to, &SS2D::plan),
               argument<Params>("ends", "(B, scans, chunks - 1, D, padded states), 0 with one chunk", &Params::params,
                                to, &SS2D::ends),
               argument<Params>("steps", "(B, scans, chunks - 1, D)", &Params::params, to, &SS2D::steps),
           };
  };
  using Forward = Launch<SS2DForward>;
  add_launch(m, "cuda_ss2d_forward", "The four-direction scan.", launch_ss2d_fwd,
             inputs(Forward{}, &SS2DForward::scan) +
                 Arguments<Forward>{argument<Forward>("maps", "whose sum is y, (B, L, D) each", &Forward::params,
                                                      &SS2DForward::maps)});
  using Backward = Launch<SS2DBackward>;
  constexpr auto to = &Backward::params;
  add_launch(
      m, "cuda_ss2d_backward", "The gradients of the four-direction scan.", launch_ss2d_bwd,
      inputs(Backward{}, &SS2DBackward::scan) +
          Arguments<Backward>{
              argument<Backward>("dy", "(B, D, H, W)", to, &SS2DBackward::dy),
              argument<Backward>("dx_dbl", "like x_dbl", to, &SS2DBackward::dx_dbl),
              argument<Backward>("maps", "whose sum is du, (B, L, D) each; the same where a launch serves one pair", to,
                                 &SS2DBackward::maps),
              argument<Backward>("carries", "(images, scans, chunks, D, padded states), 0 with one window", to,
                                 &SS2DBackward::carries),
              argument<Backward>("parts", "(stored parts, images, scans, pixels, R + 2 N)", to, &SS2DBackward::parts),
              argument<Backward>("sums", "(images * chunks - 1, scans, D, N + R + 2)", to, &SS2DBackward::sums),
              argument<Backward>("ddt_weight", "(4, D, R)", to, &SS2DBackward::ddt_weight),
              argument<Backward>("ddt_bias", "(4, D)", to, &SS2DBackward::ddt_bias),
              argument<Backward>("dA_logs", "(4 D, N)", to, &SS2DBackward::dA_logs),
              argument<Backward>("dDs", "(4 D)", to, &SS2DBackward::dDs),
          });
}

void bind_selective_scan(py::module_& m) {
  using Planned = Problem<SelectiveScanShape>;
  py::class_<SelectiveScanPlan>(m, "SelectiveScanPlan", py::module_local(),
                                "Which kernel serves a call of selective_scan, and how its work is cut.")
      .def_readonly("layout", &SelectiveScanPlan::layout, "Index in the tables; -1 for none.")
      .def_readonly("padded_states", &SelectiveScanPlan::padded_states, "N, rounded up to what the layout keeps.")
      .def_readonly("tile_tokens", &SelectiveScanPlan::tile_tokens, "Tokens per tile.")
      .def_readonly("group_blocks", &SelectiveScanPlan::group_blocks, "Blocks along the channels of a group.")
      .def_readonly("chunk_tiles", &SelectiveScanPlan::chunk_tiles, "Tiles per chunk; the last has what is left.")
      .def_readonly("chunks", &SelectiveScanPlan::chunks, "Of a sequence.")
      .def_readonly("tiles", &SelectiveScanPlan::tiles, "Of a sequence.");
  add_function(m, "cuda_selective_scan_plan", "The plan of a call of selective_scan.",
               Arguments<Planned>{selective_scan_sizes<Planned>(&Planned::shape),
                                  argument<Planned>("constant", "whether B or C does not vary", &Planned::option),
                                  gpu_argument<Planned>()},
               [](const Planned& p) { return plan_selective_scan(p.shape, p.option, p.gpu); });

  const auto inputs = [](auto launch, auto to) {
    using Params = decltype(launch);
    constexpr auto order = &SelectiveScan::order;
    return selective_scan_inputs<Params, SelectiveScan>(&Params::params, to) +
           Arguments<Params>{
               argument<Params>("by_token", "whether tokens are visited in an order, channels side by side",
                                &Params::params, to, order, &SelectiveScanOrder::by_token),
               argument<Params>("tokens", "of a sequence; the sizes have those that are visited", &Params::params, to,
                                order, &SelectiveScanOrder::tokens),
               argument<Params>("table", "(G, L) or (B, G, L), int32, 0 where all are visited as they come",
                                &Params::params, to, order, &SelectiveScanOrder::table),
               argument<Params>("table_stride", "of B tables, 0 for one", &Params::params, to, order,
                                &SelectiveScanOrder::table_stride),
               argument<Params>("sequences", "(B, tokens), int32, 0 for a single sequence", &Params::params, to, order,
                                &SelectiveScanOrder::sequences),
               argument<Params>("initial_state", "(B, D, N), 0 for zeros", &Params::params, to,
                                &SelectiveScan::initial_state),
               argument<Params>("plan", "as cuda_selective_scan_plan has it", &Params::params, to,
                                &SelectiveScan::plan),
               argument<Params>("ends", "(B, chunks, D, padded states), 0 with one chunk", &Params::params, to,
                                &SelectiveScan::ends),
               argument<Params>("steps", "(B, chunks, D)", &Params::params, to, &SelectiveScan::steps),
           };
  };
  using Forward = Launch<SelectiveScanForward>;
  constexpr auto forward = &Forward::params;
  add_launch(m, "cuda_selective_scan_forward", "The selective scan.", launch_selective_scan_fwd,
             inputs(Forward{}, &SelectiveScanForward::scan) +
                 Arguments<Forward>{
                     argument<Forward>("z", "like u, may be absent", forward, &SelectiveScanForward::z),
                     argument<Forward>("out", "like u", forward, &SelectiveScanForward::out),
                     argument<Forward>("ungated", "(B, D, L), the output before the gate, 0 if not wanted", forward,
                                       &SelectiveScanForward::ungated),
                     argument<Forward>("last_state", "(B, D, N)", forward, &SelectiveScanForward::last_state),
                 });
  using Backward = Launch<SelectiveScanBackward>;
  constexpr auto to = &Backward::params;
  add_launch(
      m, "cuda_selective_scan_backward", "The gradients of the selective scan.", launch_selective_scan_bwd,
      inputs(Backward{}, &SelectiveScanBackward::scan) +
          Arguments<Backward>{
              argument<Backward>("z", "like u, may be absent", to, &SelectiveScanBackward::z),
              argument<Backward>("ungated", "as the forward pass left it, 0 without z", to,
                                 &SelectiveScanBackward::ungated),
              argument<Backward>("dout", "like u", to, &SelectiveScanBackward::dout),
              argument<Backward>("dlast_state", "(B, D, N), may be absent", to, &SelectiveScanBackward::dlast_state),
              argument<Backward>("du", "like u", to, &SelectiveScanBackward::du),
              argument<Backward>("ddelta", "like u", to, &SelectiveScanBackward::ddelta),
              argument<Backward>("dz", "like u, absent with z", to, &SelectiveScanBackward::dz),
              argument<Backward>("drows", "(group blocks, B, G, tokens, 2 N), of B and C where they vary", to,
                                 &SelectiveScanBackward::drows),
              argument<Backward>("dparameters", "(B chunks, D, 3 N + 2), of A, constant B and C, D, delta_bias", to,
                                 &SelectiveScanBackward::dparameters),
              argument<Backward>("dinitial_state", "(B, D, N), 0 if not wanted", to,
                                 &SelectiveScanBackward::dinitial_state),
          });
}

void bind_dwconv_silu(py::module_& m) {
  using Planned = Problem<DwconvSiluShape>;
  add_function(m, "cuda_dwconv_silu_parts", "Rows of partial sums that a backward pass leaves.",
               Arguments<Planned>{dwconv_silu_sizes<Planned>(&Planned::shape), multiprocessors<Planned>()},
               [](const Planned& p) {
                 const auto& [batch, channels, height, width] = p.shape;
                 return dwconv_silu_parts(batch, channels, height, width, p.gpu.multiprocessors);
               });
  using Forward = Launch<DwconvSiluForward>;
  add_launch(m, "cuda_dwconv_silu_forward", "Depthwise convolution, bias and SiLU.", launch_dwconv_silu_fwd,
             dwconv_silu_inputs<Forward, DwconvSilu>(&Forward::params, &DwconvSiluForward::conv) +
                 Arguments<Forward>{argument<Forward>("y", "(B, D, H, W)", &Forward::params, &DwconvSiluForward::y)});
  using Backward = Launch<DwconvSiluBackward>;
  constexpr auto to = &Backward::params;
  add_launch(
      m, "cuda_dwconv_silu_backward", "The gradients of dwconv_silu.", launch_dwconv_silu_bwd,
      dwconv_silu_inputs<Backward, DwconvSilu>(to, &DwconvSiluBackward::conv) +
          Arguments<Backward>{
              argument<Backward>("dy", "(B, D, H, W)", to, &DwconvSiluBackward::dy),
              argument<Backward>("dx", "(B, D, H, W)", to, &DwconvSiluBackward::dx),
              argument<Backward>("partials", "(parts, D, 10), of weight and bias", to, &DwconvSiluBackward::partials),
              argument<Backward>("parts", "as cuda_dwconv_silu_parts has it", to, &DwconvSiluBackward::parts),
          });
}

void bind_causal_conv1d(py::module_& m) {
  using Planned = Problem<CausalConv1dShape>;
  add_function(m, "cuda_causal_conv1d_parts", "Rows of partial sums that a backward pass leaves.",
               Arguments<Planned>{causal_conv1d_sizes<Planned>(&Planned::shape), multiprocessors<Planned>()},
               [](const Planned& p) { return causal_conv1d_parts(p.shape, p.gpu.multiprocessors); });
  using Forward = Launch<CausalConv1dForward>;
  add_launch(m, "cuda_causal_conv1d_forward", "Depthwise causal convolution, bias and SiLU.", launch_causal_conv1d_fwd,
             causal_conv1d_inputs<Forward, CausalConv1d>(&Forward::params, &CausalConv1dForward::conv) +
                 Arguments<Forward>{argument<Forward>("y", "(B, D, L)", &Forward::params, &CausalConv1dForward::y)});
  using Backward = Launch<CausalConv1dBackward>;
  constexpr auto to = &Backward::params;
  add_launch(
      m, "cuda_causal_conv1d_backward", "The gradients of causal_conv1d.", launch_causal_conv1d_bwd,
      causal_conv1d_inputs<Backward, CausalConv1d>(to, &CausalConv1dBackward::conv) +
          Arguments<Backward>{
              argument<Backward>("dy", "(B, D, L)", to, &CausalConv1dBackward::dy),
              argument<Backward>("dx", "(B, D, L)", to, &CausalConv1dBackward::dx),
              argument<Backward>("partials", "(parts, D, 5), of the taps, the last first, and the bias", to,
                                 &CausalConv1dBackward::partials),
              argument<Backward>("parts", "as cuda_causal_conv1d_parts has it", to, &CausalConv1dBackward::parts),
              argument<Backward>("dinitial_states", "(B, D, w - 1), 0 if not wanted", to,
                                 &CausalConv1dBackward::dinitial_states),
          });
}

void bind_norm_gate(py::module_& m) {
  using Planned = Problem<NormGateShape>;
  add_function(
      m, "cuda_norm_gate_blocks", "Rows of partial sums that a backward pass leaves.",
      Arguments<Planned>{norm_gate_sizes<Planned>(&Planned::shape), multiprocessors<Planned>()},
      [](const Planned& p) { return norm_gate_blocks(p.shape.rows, p.shape.channels, p.gpu.multiprocessors); });
  using Forward = Launch<NormGateForward>;
  constexpr auto forward = &Forward::params;
  add_launch(m, "cuda_norm_gate_forward", "LayerNorm of x plus an addend, times SiLU(z).", launch_norm_gate_fwd,
             norm_gate_inputs<Forward, NormGate>(forward, &NormGateForward::norm) +
                 Arguments<Forward>{
                     argument<Forward>("addend", "(rows, D), may be absent", forward, &NormGateForward::addend),
                     argument<Forward>("out", "(rows, D)", forward, &NormGateForward::out),
                 });
  using Backward = Launch<NormGateBackward>;
  constexpr auto to = &Backward::params;
  add_launch(
      m, "cuda_norm_gate_backward", "The gradients of norm_gate.", launch_norm_gate_bwd,
      norm_gate_inputs<Backward, NormGate>(to, &NormGateBackward::norm) +
          Arguments<Backward>{
              argument<Backward>("dout", "(rows, D)", to, &NormGateBackward::dout),
              argument<Backward>("dx", "(rows, D)", to, &NormGateBackward::dx),
              argument<Backward>("dz", "(rows, D), absent with z", to, &NormGateBackward::dz),
              argument<Backward>("partials", "(blocks, 2, D), of weight and bias", to, &NormGateBackward::partials),
              argument<Backward>("blocks", "as cuda_norm_gate_blocks has it", to, &NormGateBackward::blocks),
          });
}

void bind_interaction_passes(py::module_& m) {
  using Planned = Problem<InteractionShape>;
  py::class_<InteractionPlan>(m, "InteractionPlan", py::module_local(), "How the work of task interaction is cut.")
      .def_readonly("tiles", &InteractionPlan::tiles, "Of an image.")
      .def_readonly("sign_words", &InteractionPlan::sign_words, "Of a pixel.")
      .def_readonly("sign_bytes", &InteractionPlan::sign_bytes, "Of such a word.")
      .def_readonly("row_blocks", &InteractionPlan::row_blocks, "Blocks along P.")
      .def_readonly("shares", &InteractionPlan::shares, "Of all pixels, for the gradients of the parameters.")
      .def_readonly("chunks", &InteractionPlan::chunks, "Of an image, for the gradient of the factors.");
  add_function(m, "cuda_interaction_plan", "The plan of the passes over a map.",
               Arguments<Planned>{interaction_sizes<Planned>(&Planned::shape), multiprocessors<Planned>()},
               [](const Planned& p) { return plan_interaction(p.shape, p.gpu.multiprocessors); });

  using Forward = Launch<InteractionReduceForward>;
  constexpr auto forward = &Forward::params;
  add_launch(m, "cuda_interaction_reduce_forward", "Mean, variance, gradient energy and pooled projection of a map.",
             launch_interaction_reduce_fwd,
             interaction_reduce_inputs<Forward, InteractionReduce>(forward, &InteractionReduceForward::reduce) +
                 Arguments<Forward>{
                     argument<Forward>("variance", "(B, C)", forward, &InteractionReduceForward::variance),
                     argument<Forward>("energy", "(B), 0 if not wanted", forward, &InteractionReduceForward::energy),
                     argument<Forward>("parts", "(B, tiles, 2 C + P + 3)", forward, &InteractionReduceForward::parts),
                 });
  using Backward = Launch<InteractionReduceBackward>;
  constexpr auto to = &Backward::params;
  add_launch(m, "cuda_interaction_reduce_backward", "The gradients of what was gathered from a map, plus dy factors.",
             launch_interaction_reduce_bwd,
             interaction_reduce_inputs<Backward, InteractionReduce>(to, &InteractionReduceBackward::reduce) +
                 Arguments<Backward>{
                     argument<Backward>("shares", "as the plan has it", to, &InteractionReduceBackward::shares),
                     argument<Backward>("dy", "(B, C, L), may be absent", to, &InteractionReduceBackward::dy),
                     argument<Backward>("factors", "(B, C), 0 without dy", to, &InteractionReduceBackward::factors),
                     argument<Backward>("dmean", "(B, C), 0 for zeros", to, &InteractionReduceBackward::dmean),
                     argument<Backward>("dvariance", "(B, C), 0 for zeros", to, &InteractionReduceBackward::dvariance),
                     argument<Backward>("denergy", "(B), 0 for zeros", to, &InteractionReduceBackward::denergy),
                     argument<Backward>("dpooled", "(B, P), 0 for zeros", to, &InteractionReduceBackward::dpooled),
                     argument<Backward>("reached", "(B, row blocks, L), 0 without attn", to,
                                        &InteractionReduceBackward::reached),
                     argument<Backward>("logits", "(B, L), 0 without attn", to, &InteractionReduceBackward::logits),
                     argument<Backward>("parts", "(shares, P C + P + C), 0 where no parameter's gradient is wanted", to,
                                        &InteractionReduceBackward::parts),
                     argument<Backward>("dx", "(B, C, L), absent if not wanted", to, &InteractionReduceBackward::dx),
                     argument<Backward>("dweight", "(P, C), 0 if not wanted", to, &InteractionReduceBackward::dweight),
                     argument<Backward>("dbias", "(P), 0 if not wanted", to, &InteractionReduceBackward::dbias),
                     argument<Backward>("dattn", "(C), 0 if not wanted", to, &InteractionReduceBackward::dattn),
                 });

  using Scale = Launch<InteractionScale>;
  constexpr auto scale = &Scale::params;
  add_launch(m, "cuda_interaction_scale", "A map times a factor for each channel.", launch_interaction_scale,
             Arguments<Scale>{
                 interaction_sizes<Scale>(scale, &InteractionScale::shape),
                 argument<Scale>("x", "(B, C, L)", scale, &InteractionScale::x),
                 argument<Scale>("factors", "(B, C)", scale, &InteractionScale::factors),
                 argument<Scale>("y", "(B, C, L)", scale, &InteractionScale::y),
             });
  using Factors = Launch<InteractionFactors>;
  constexpr auto factors = &Factors::params;
  add_launch(m, "cuda_interaction_factors", "Parts of the gradient of the factors.", launch_interaction_factors,
             Arguments<Factors>{
                 interaction_sizes<Factors>(factors, &InteractionFactors::shape),
                 argument<Factors>("x", "(B, C, L)", factors, &InteractionFactors::x),
                 argument<Factors>("dy", "(B, C, L)", factors, &InteractionFactors::dy),
                 argument<Factors>("parts", "(B, chunks, C)", factors, &InteractionFactors::parts),
                 argument<Factors>("chunks", "as the plan has it", factors, &InteractionFactors::chunks),
             });
}

void bind_interaction_gating(py::module_& m) {
  using Forward = Launch<InteractionGatingForward>;
  constexpr auto forward = &Forward::params;
  add_launch(m, "cuda_interaction_gating_forward",
             "From the sums over a map to the gates and the factors of its channels.", launch_interaction_gating_fwd,
             interaction_gating_inputs<Forward, InteractionGating>(forward, &InteractionGatingForward::gating) +
                 Arguments<Forward>{
                     argument<Forward>("normalised", "(B, F), scratch", forward, &InteractionGatingForward::normalised),
                     argument<Forward>("factors", "(B, C)", forward, &InteractionGatingForward::factors),
                     argument<Forward>("clf", "(B, F)", forward, &InteractionGatingForward::clf),
                 });
  using Backward = Launch<InteractionGatingBackward>;
  constexpr auto to = &Backward::params;
  add_launch(m, "cuda_interaction_gating_backward", "The gradients of the gates and the factors.",
             launch_interaction_gating_bwd,
             interaction_gating_inputs<Backward, InteractionGating>(to, &InteractionGatingBackward::gating) +
                 Arguments<Backward>{argument<Backward>("scratch", "B (4 C + 6 F + 2 Q + 5) elements", to,
                                                        &InteractionGatingBackward::scratch)} +
                 interaction_gating_gradients<Backward, InteractionGatingBackward>(to));
}

}  // namespace
}  // namespace cuda

void bind_cuda(py::module_& m) {
  const int version = cuda::toolkit_version();
  m.attr("cuda_toolkit") = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  m.def("cuda_error_string", &cuda::error_string, py::arg("code"), "The text of a cudaError_t.");
  cuda::bind_ss2d(m);
  cuda::bind_selective_scan(m);
  cuda::bind_dwconv_silu(m);
  cuda::bind_causal_conv1d(m);
  cuda::bind_norm_gate(m);
  cuda::bind_interaction_passes(m);
  cuda::bind_interaction_gating(m);
}

}  // namespace mtlkit
