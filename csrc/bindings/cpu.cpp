// Binds the CPU kernels. A kernel returns 0 or a status; error_string gives its text.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/function.h"
#include "bindings/operators.h"
#include "cpu/dispatch.h"
#include "cpu/huge_pages.h"
#include "cpu/interaction/level.h"

namespace py = pybind11;

namespace mtlkit {
namespace {

const char* error_string(int status) {
  switch (status) {
    case kOk:
      return "no error";
    case kOutOfMemory:
      return "out of memory for scratch buffers";
    case kTokenOutOfRange:
      return "order: expected tokens of u, got one out of range";
    default:
      return "unknown status";
  }
}

// The type of computation and the threads of a call; `to` is the path to the struct of a forward pass.
template <typename Params, typename Forward, typename... Path>
Arguments<Params> computation(Path... to) {
  return {argument<Params>("use_double", "whether to compute in double, else in float", to..., &Forward::use_double),
          argument<Params>("threads", "the most to use", to..., &Forward::threads)};
}

// Adds a kernel of the table; each call uses the table that is active then.
template <typename Params>
void add_kernel(py::module_& m, const char* name, const char* summary, int (*CpuKernels::*kernel)(const Params&),
                Arguments<Params> arguments) {
  add_function(m, name, summary, std::move(arguments),
               [kernel](const Params& params) { return (cpu_kernels().*kernel)(params); });
}

void bind_ss2d(py::module_& m) {
  using Forward = SS2DForward;
  using Backward = SS2DBackward;
  add_kernel(m, "ss2d_forward", "The four-direction scan.", &CpuKernels::ss2d_forward,
             ss2d_inputs<Forward, Forward>() + computation<Forward, Forward>() +
                 Arguments<Forward>{argument<Forward>("y", "(B, D, H, W)", &Forward::y)});
  add_kernel(m, "ss2d_backward", "The gradients of the four-direction scan.", &CpuKernels::ss2d_backward,
             ss2d_inputs<Backward, Forward>(&Backward::forward) + computation<Backward, Forward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dy", "(B, D, H, W)", &Backward::dy),
                     argument<Backward>("du", "(B, D, H, W)", &Backward::du),
                     argument<Backward>("dx_dbl", "like x_dbl", &Backward::dx_dbl),
                     argument<Backward>("ddt_weight", "(4, D, R)", &Backward::ddt_weight),
                     argument<Backward>("ddt_bias", "(4, D)", &Backward::ddt_bias),
                     argument<Backward>("dA_logs", "(4 D, N)", &Backward::dA_logs),
                     argument<Backward>("dDs", "(4 D)", &Backward::dDs),
                 });
}

void bind_ss2d_layer(py::module_& m) {
  using Params = SS2DLayerForward;
  add_kernel(m, "ss2d_layer_forward", "A whole SS2D layer in float32.", &CpuKernels::ss2d_layer_forward,
             Arguments<Params>{
                 ss2d_sizes<Params>(&Params::shape),
                 argument<Params>("x", "(B, H, W, C), contiguous", &Params::x),
                 argument<Params>("in_weight", "(2 D, C), without a gate (D, C)", &Params::in_weight),
                 argument<Params>("in_bias", "may be absent", &Params::in_bias),
                 argument<Params>("conv_weight", "(D, k, k), absent without a convolution", &Params::conv_weight),
                 argument<Params>("conv_bias", "(D), may be absent", &Params::conv_bias),
                 argument<Params>("x_proj_weight", "(4 (R + 2 N), D)", &Params::x_proj_weight),
                 argument<Params>("dt_weight", "(4, D, R)", &Params::dt_weight),
                 argument<Params>("dt_bias", "(4, D)", &Params::dt_bias),
                 argument<Params>("A_logs", "(4 D, N)", &Params::A_logs),
                 argument<Params>("Ds", "(4 D)", &Params::Ds),
                 argument<Params>("norm", "whether LayerNorm follows the scan", &Params::norm),
                 argument<Params>("norm_weight", "(D), absent for ones", &Params::norm_weight),
                 argument<Params>("norm_bias", "(D), absent for zeros", &Params::norm_bias),
                 argument<Params>("eps", "what is added to the variance", &Params::eps),
                 argument<Params>("gate", "0 for none, 1 for SiLU(z), 2 for z", &Params::gate),
                 argument<Params>("out_weight", "(C, D)", &Params::out_weight),
                 argument<Params>("out_bias", "(C), may be absent", &Params::out_bias),
                 argument<Params>("y", "(B, H, W, C), contiguous", &Params::y),
                 argument<Params>("model", "channels in and out, C", &Params::model),
                 argument<Params>("kernel", "rows and columns of the convolution, k: 3, 5 or 7", &Params::kernel),
                 argument<Params>("threads", "the most to use", &Params::threads),
             });
}

// `to` is the path to LinearForward.
template <typename Params, typename... Path>
Arguments<Params> linear_inputs(Path... to) {
  using Forward = LinearForward;
  return {
      sizes<Params>("(rows, inputs, outputs)", member_of<Params>(to...), &Forward::rows, &Forward::inputs,
                    &Forward::outputs),
      argument<Params>("x", "(rows, inputs), contiguous, float32", to..., &Forward::x),
      argument<Params>("weight", "(outputs, inputs)", to..., &Forward::weight),
      argument<Params>("threads", "the most to use", to..., &Forward::threads),
  };
}

void bind_linear(py::module_& m) {
  using Forward = LinearForward;
  using Backward = LinearBackward;
  add_kernel(m, "linear_forward", "A linear layer in float32.", &CpuKernels::linear_forward,
             linear_inputs<Forward>() + Arguments<Forward>{
                                            argument<Forward>("bias", "(outputs), may be absent", &Forward::bias),
                                            argument<Forward>("y", "(rows, outputs), contiguous", &Forward::y),
                                        });
  add_kernel(m, "linear_backward", "The gradients of a linear layer.", &CpuKernels::linear_backward,
             linear_inputs<Backward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dy", "(rows, outputs), contiguous, float32, like all below", &Backward::dy),
                     argument<Backward>("dx", "(rows, inputs), 0 if not wanted", &Backward::dx),
                     argument<Backward>("dweight", "(outputs, inputs), 0 if not wanted", &Backward::dweight),
                     argument<Backward>("dbias", "(outputs), 0 if not wanted", &Backward::dbias),
                     argument<Backward>("add", "whether to add to dx instead of setting it", &Backward::add),
                 });
}

// `to` is the path to DirectionalScanForward.
template <typename Params, typename... Path>
Arguments<Params> directional_scan_inputs(Path... to) {
  using Forward = DirectionalScanForward;
  using Shape = DirectionalScanShape;
  return Arguments<Params>{
             sizes<Params>("(B, K, D, H, W, T, N, R)", member_of<Params>(to..., &Forward::shape), &Shape::batch,
                           &Shape::directions, &Shape::channels, &Shape::height, &Shape::width, &Shape::steps,
                           &Shape::states, &Shape::rank),
             argument<Params>("own_inputs", "whether each direction has its own u", to..., &Forward::own_inputs),
             argument<Params>("merge", "whether the output is the sum over the directions", to..., &Forward::merge),
             argument<Params>("u", "(B, K, D, H, W)", to..., &Forward::u),
             argument<Params>("x_dbl", "(B, H, W, K, R + 2 N), contiguous", to..., &Forward::x_dbl),
             argument<Params>("dt_weight", "(K, D, R)", to..., &Forward::dt_weight),
             argument<Params>("dt_bias", "(K, D)", to..., &Forward::dt_bias),
             argument<Params>("A_logs", "(K D, N)", to..., &Forward::A_logs),
             argument<Params>("Ds", "(K D)", to..., &Forward::Ds),
             argument<Params>("order", "(K, T) or (B, K, T), int32", to..., &Forward::order),
             argument<Params>("own_orders", "whether each sample has its own order", to..., &Forward::own_orders),
             argument<Params>("starts", "(B, K, T), one byte each, 0 for none", to..., &Forward::starts),
             argument<Params>("initial_state", "(B, K, D, N), may be absent", to..., &Forward::initial_state),
             argument<Params>("checkpoints", "states kept for the backward pass, 0 for none", to...,
                              &Forward::checkpoints),
         } +
         computation<Params, Forward>(to...);
}

void bind_directional_scan(py::module_& m) {
  using Forward = DirectionalScanForward;
  using Backward = DirectionalScanBackward;
  add_kernel(m, "directional_scan_forward", "The scan along any orders of the tokens.",
             &CpuKernels::directional_scan_forward,
             directional_scan_inputs<Forward>() +
                 Arguments<Forward>{
                     argument<Forward>("y", "(B, K, D, H, W)", &Forward::y),
                     argument<Forward>("last_state", "(B, K, D, N), 0 if not wanted", &Forward::last_state),
                 });
  add_kernel(m, "directional_scan_backward", "The gradients of the scan along any orders.",
             &CpuKernels::directional_scan_backward,
             directional_scan_inputs<Backward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dy", "(B, K, D, H, W)", &Backward::dy),
                     argument<Backward>("dlast_state", "(B, K, D, N), may be absent", &Backward::dlast_state),
                     argument<Backward>("du", "(B, K, D, H, W)", &Backward::du),
                     argument<Backward>("dx_dbl", "like x_dbl", &Backward::dx_dbl),
                     argument<Backward>("ddt_weight", "(K, D, R)", &Backward::ddt_weight),
                     argument<Backward>("ddt_bias", "(K, D)", &Backward::ddt_bias),
                     argument<Backward>("dA_logs", "(K D, N)", &Backward::dA_logs),
                     argument<Backward>("dDs", "(K D)", &Backward::dDs),
                     argument<Backward>("dinitial_state", "(B, K, D, N), 0 if not wanted", &Backward::dinitial_state),
                 });
}

void bind_selective_scan(py::module_& m) {
  using Forward = SelectiveScanForward;
  using Backward = SelectiveScanBackward;
  add_kernel(m, "selective_scan_forward", "The selective scan.", &CpuKernels::selective_scan_forward,
             selective_scan_inputs<Forward, Forward>() + computation<Forward, Forward>() +
                 Arguments<Forward>{
                     argument<Forward>("z", "(B, D, L), may be absent", &Forward::z),
                     argument<Forward>("out", "(B, D, L)", &Forward::out),
                     argument<Forward>("last_state", "(B, D, N), 0 if not wanted", &Forward::last_state),
                 });
  add_kernel(m, "selective_scan_backward", "The gradients of the selective scan.", &CpuKernels::selective_scan_backward,
             selective_scan_inputs<Backward, Forward>(&Backward::forward) +
                 computation<Backward, Forward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("z", "(B, D, L), may be absent", &Backward::forward, &Forward::z),
                     argument<Backward>("dout", "(B, D, L)", &Backward::dout),
                     argument<Backward>("dlast_state", "(B, D, N), may be absent", &Backward::dlast_state),
                     argument<Backward>("du", "(B, D, L)", &Backward::du),
                     argument<Backward>("ddelta", "(B, D, L)", &Backward::ddelta),
                     argument<Backward>("dz", "(B, D, L), absent with z", &Backward::dz),
                     argument<Backward>("dA", "(D, N)", &Backward::dA),
                     argument<Backward>("dB", "(B, G, L, N), or (D, N) if B does not vary", &Backward::dB),
                     argument<Backward>("dC", "like dB", &Backward::dC),
                     argument<Backward>("dD", "(D), 0 without D", &Backward::dD),
                     argument<Backward>("ddelta_bias", "(D), 0 without delta_bias", &Backward::ddelta_bias),
                 });
}

template <typename Params, typename... Path>
Arguments<Params> depthwise_conv2d_inputs(Path... to) {
  using Inputs = DepthwiseConv2dForward;
  using Shape = DepthwiseConv2dShape;
  return {
      sizes<Params>("(B, D, H, W, k, H', W')", member_of<Params>(to..., &Inputs::shape), &Shape::batch,
                    &Shape::channels, &Shape::height, &Shape::width, &Shape::kernel, &Shape::out_height,
                    &Shape::out_width),
      argument<Params>("stride", "pixels between windows, 1 or 2", to..., &Inputs::shape, &Shape::stride),
      argument<Params>("dilation", "pixels between taps, 1 with stride 2", to..., &Inputs::shape, &Shape::dilation),
      argument<Params>("top", "rows of zeros above", to..., &Inputs::shape, &Shape::top),
      argument<Params>("left", "columns of zeros before", to..., &Inputs::shape, &Shape::left),
      argument<Params>("x", "(B, D, H, W)", to..., &Inputs::x),
      argument<Params>("weight", "(D, k, k)", to..., &Inputs::weight),
      argument<Params>("bias", "(D), may be absent", to..., &Inputs::bias),
      argument<Params>("silu", "whether SiLU follows", to..., &Inputs::silu),
  };
}

void bind_depthwise_conv2d(py::module_& m) {
  using Forward = DepthwiseConv2dForward;
  using Backward = DepthwiseConv2dBackward;
  add_kernel(m, "depthwise_conv2d_forward", "Depthwise convolution of 3, 5 or 7, bias and SiLU.",
             &CpuKernels::depthwise_conv2d_forward,
             depthwise_conv2d_inputs<Forward>() + computation<Forward, Forward>() +
                 Arguments<Forward>{argument<Forward>("y", "(B, D, H', W')", &Forward::y)});
  add_kernel(
      m, "depthwise_conv2d_backward", "The gradients of depthwise_conv2d.", &CpuKernels::depthwise_conv2d_backward,
      depthwise_conv2d_inputs<Backward>(&Backward::forward) + computation<Backward, Forward>(&Backward::forward) +
          Arguments<Backward>{
              argument<Backward>("dy", "(B, D, H', W')", &Backward::dy),
              argument<Backward>("dx", "(B, D, H, W), may be absent", &Backward::dx),
              argument<Backward>("dweight", "(D, k, k), 0 if it is not wanted", &Backward::dweight),
              argument<Backward>("dbias", "(D), 0 without bias", &Backward::dbias),
          });
}

void bind_causal_conv1d(py::module_& m) {
  using Forward = CausalConv1dForward;
  using Backward = CausalConv1dBackward;
  add_kernel(m, "causal_conv1d_forward", "Depthwise causal convolution, bias and SiLU.",
             &CpuKernels::causal_conv1d_forward,
             causal_conv1d_inputs<Forward, Forward>() + computation<Forward, Forward>() +
                 Arguments<Forward>{argument<Forward>("y", "(B, D, L)", &Forward::y)});
  add_kernel(m, "causal_conv1d_backward", "The gradients of causal_conv1d.", &CpuKernels::causal_conv1d_backward,
             causal_conv1d_inputs<Backward, Forward>(&Backward::forward) +
                 computation<Backward, Forward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dy", "(B, D, L)", &Backward::dy),
                     argument<Backward>("dx", "(B, D, L)", &Backward::dx),
                     argument<Backward>("dweight", "(D, w)", &Backward::dweight),
                     argument<Backward>("dbias", "(D), 0 without bias", &Backward::dbias),
                     argument<Backward>("dinitial_states", "(B, D, w - 1), may be absent", &Backward::dinitial_states),
                 });

  using Update = CausalConv1dUpdate;
  add_kernel(
      m, "causal_conv1d_update", "The next tokens of causal_conv1d.", &CpuKernels::causal_conv1d_update,
      computation<Update, Update>() +
          Arguments<Update>{
              causal_conv1d_sizes<Update>(&Update::shape),
              argument<Update>("kept", "tokens of a row of the state", &Update::kept),
              argument<Update>("x", "(B, D, L)", &Update::x),
              argument<Update>("conv_state", "(rows, D, kept), written in place", &Update::conv_state),
              argument<Update>("weight", "(D, w)", &Update::weight),
              argument<Update>("bias", "(D), may be absent", &Update::bias),
              argument<Update>("cache_seqlens", "(B), 32 bits, 0 where the state is no ring", &Update::cache_seqlens),
              argument<Update>("conv_state_indices", "(B), 32 bits, rows, 0 for as they come",
                               &Update::conv_state_indices),
              argument<Update>("silu", "whether SiLU follows", &Update::silu),
              argument<Update>("y", "(B, D, L)", &Update::y),
          });
}

void bind_selective_state_update(py::module_& m) {
  using Update = SelectiveStateUpdate;
  add_kernel(m, "selective_state_update", "One token of the selective scan.", &CpuKernels::selective_state_update,
             computation<Update, Update>() +
                 Arguments<Update>{
                     sizes<Update>("(B, H, D, N, G)", member_of<Update>(), &Update::batch, &Update::heads,
                                   &Update::channels, &Update::states, &Update::groups),
                     argument<Update>("state", "(rows, H, D, N), written in place", &Update::state),
                     argument<Update>("x", "(B, H, D)", &Update::x),
                     argument<Update>("dt", "(B, H, D)", &Update::dt),
                     argument<Update>("A", "(H, D, N)", &Update::A),
                     argument<Update>("B", "(B, G, N)", &Update::B),
                     argument<Update>("C", "(B, G, N)", &Update::C),
                     argument<Update>("D", "(H, D), may be absent", &Update::D),
                     argument<Update>("z", "(B, H, D), may be absent", &Update::z),
                     argument<Update>("dt_bias", "(H, D), may be absent", &Update::dt_bias),
                     argument<Update>("state_batch_indices", "(B), 32 bits, rows, 0 for as they come",
                                      &Update::state_batch_indices),
                     argument<Update>("dt_softplus", "whether dt goes through softplus", &Update::dt_softplus),
                     argument<Update>("y", "(B, H, D)", &Update::y),
                 });
}

void bind_norm_gate(py::module_& m) {
  using Forward = NormGateForward;
  using Backward = NormGateBackward;
  add_kernel(m, "norm_gate_forward", "LayerNorm, times SiLU(z).", &CpuKernels::norm_gate_forward,
             norm_gate_inputs<Forward, Forward>() + computation<Forward, Forward>() +
                 Arguments<Forward>{argument<Forward>("out", "(rows, D)", &Forward::out)});
  add_kernel(m, "norm_gate_backward", "The gradients of norm_gate.", &CpuKernels::norm_gate_backward,
             norm_gate_inputs<Backward, Forward>(&Backward::forward) +
                 computation<Backward, Forward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dout", "(rows, D)", &Backward::dout),
                     argument<Backward>("dx", "(rows, D)", &Backward::dx),
                     argument<Backward>("dz", "(rows, D), absent with z", &Backward::dz),
                     argument<Backward>("dweight", "(D), 0 without weight", &Backward::dweight),
                     argument<Backward>("dbias", "(D), 0 without bias", &Backward::dbias),
                 });
}

// `to` is the path to InteractionReduceForward.
template <typename Params, typename... Path>
Arguments<Params> reduce_arguments(Path... to) {
  using Forward = InteractionReduceForward;
  return interaction_reduce_inputs<Params, Forward>(to...) + computation<Params, Forward>(to...);
}

void bind_interaction_reduce(py::module_& m) {
  using Forward = InteractionReduceForward;
  using Backward = InteractionReduceBackward;
  add_kernel(m, "interaction_reduce_forward", "Mean, variance, gradient energy and pooled projection of a map.",
             &CpuKernels::interaction_reduce_forward,
             reduce_arguments<Forward>() + Arguments<Forward>{
                                               argument<Forward>("variance", "(B, C)", &Forward::variance),
                                               argument<Forward>("energy", "(B), 0 if not wanted", &Forward::energy),
                                           });
  add_kernel(m, "interaction_reduce_backward", "The gradients of what was gathered from a map, plus dy factors.",
             &CpuKernels::interaction_reduce_backward,
             reduce_arguments<Backward>(&Backward::forward) +
                 Arguments<Backward>{
                     argument<Backward>("dy", "(B, C, L), may be absent", &Backward::dy),
                     argument<Backward>("factors", "(B, C), 0 without dy", &Backward::factors),
                     argument<Backward>("dmean", "(B, C), 0 for zeros", &Backward::dmean),
                     argument<Backward>("dvariance", "(B, C), 0 for zeros", &Backward::dvariance),
                     argument<Backward>("denergy", "(B), 0 for zeros", &Backward::denergy),
                     argument<Backward>("dpooled", "(B, P), 0 for zeros", &Backward::dpooled),
                     argument<Backward>("dx", "(B, C, L), absent if not wanted", &Backward::dx),
                     argument<Backward>("dweight", "(P, C), 0 if not wanted", &Backward::dweight),
                     argument<Backward>("dbias", "(P), 0 if not wanted", &Backward::dbias),
                     argument<Backward>("dattn", "(C), 0 if not wanted", &Backward::dattn),
                 });
}

void bind_interaction_scale(py::module_& m) {
  using Forward = InteractionScaleForward;
  using Backward = InteractionScaleBackward;
  add_kernel(m, "interaction_scale_forward", "A map times a factor for each channel.",
             &CpuKernels::interaction_scale_forward,
             computation<Forward, Forward>() + Arguments<Forward>{
                                                   interaction_sizes<Forward>(&Forward::shape),
                                                   argument<Forward>("x", "(B, C, L)", &Forward::x),
                                                   argument<Forward>("factors", "(B, C)", &Forward::factors),
                                                   argument<Forward>("y", "(B, C, L)", &Forward::y),
                                               });
  add_kernel(m, "interaction_scale_backward", "The gradient of the factors.", &CpuKernels::interaction_scale_backward,
             computation<Backward, Forward>(&Backward::forward) +
                 Arguments<Backward>{
                     interaction_sizes<Backward>(&Backward::forward, &Forward::shape),
                     argument<Backward>("x", "(B, C, L)", &Backward::forward, &Forward::x),
                     argument<Backward>("dy", "(B, C, L)", &Backward::dy),
                     argument<Backward>("dfactors", "(B, C)", &Backward::dfactors),
                 });
}

// `to` is the path to InteractionGatingForward.
template <typename Params, typename... Path>
Arguments<Params> gating_arguments(Path... to) {
  using Forward = InteractionGatingForward;
  return interaction_gating_inputs<Params, Forward>(to...) + computation<Params, Forward>(to...);
}

void bind_interaction_gating(py::module_& m) {
  using Forward = InteractionGatingForward;
  using Backward = InteractionGatingBackward;
  add_kernel(m, "interaction_gating_forward", "From the sums over a map to the gates and the factors of its channels.",
             &CpuKernels::interaction_gating_forward,
             gating_arguments<Forward>() + Arguments<Forward>{
                                               argument<Forward>("factors", "(B, C)", &Forward::factors),
                                               argument<Forward>("clf", "(B, F)", &Forward::clf),
                                           });
  add_kernel(m, "interaction_gating_backward", "The gradients of the gates and the factors.",
             &CpuKernels::interaction_gating_backward,
             gating_arguments<Backward>(&Backward::forward) + interaction_gating_gradients<Backward, Backward>());
}

void bind_interaction_level(py::module_& m) {
  using Params = InteractionLevelForward;
  using Reduce = InteractionReduceForward;
  using Gating = InteractionGatingForward;
  add_function(
      m, "interaction_level_forward", "A level of task interaction where no gradient is wanted.",
      Arguments<Params>{
          interaction_sizes<Params>(&Params::reduce, &Reduce::shape),
          tuple_of<Params>("vector_sizes", "(F, H, Q)", member_of<Params>(&Params::gating, &Gating::shape),
                           &GatingShape::features, &GatingShape::hidden, &GatingShape::queries),
          argument<Params>("x", "(B, C, L)", &Params::reduce, &Reduce::x),
          argument<Params>("weight", "(P, C)", &Params::reduce, &Reduce::weight),
          argument<Params>("bias", "(P)", &Params::reduce, &Reduce::bias),
          argument<Params>("attn", "(C), absent for the plain mean", &Params::reduce, &Reduce::attn),
          argument<Params>("tau", "strength of the modulation", &Params::gating, &Gating::tau),
          argument<Params>("momentum", "of the running statistics", &Params::gating, &Gating::momentum),
          argument<Params>("eps", "of the normalisation", &Params::gating, &Gating::eps),
          argument<Params>("alignment", "whether there are three signals", &Params::gating, &Gating::alignment),
          argument<Params>("training", "whether to normalise by the batch's statistics", &Params::gating,
                           &Gating::training),
          argument<Params>("f", "(B, F)", &Params::gating, &Gating::f),
          argument<Params>("normaliser", "(2), 0 for the mean over the batch", &Params::gating, &Gating::normaliser),
          argument<Params>("norm_mean", "(F)", &Params::gating, &Gating::norm_mean),
          argument<Params>("norm_var", "(F)", &Params::gating, &Gating::norm_var),
          argument<Params>("weights", "those of interaction_gating_forward, in its order", &Params::gating,
                           &Gating::weights),
          argument<Params>("mu", "(B, C)", &Params::gating, &Gating::mu),
          argument<Params>("clf", "(B, F)", &Params::gating, &Gating::clf),
          argument<Params>("enhanced", "(B, F)", &Params::gating, &Gating::enhanced),
          argument<Params>("gates", "(B, 2)", &Params::gating, &Gating::gates),
          argument<Params>("signals", "three, (B) each", &Params::gating, &Gating::signals),
          argument<Params>("y", "(B, C, L)", &Params::y),
      } + computation<Params, Reduce>(&Params::reduce),
      [](const Params& params) { return interaction_level_forward(cpu_kernels(), params); });
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.attr("checkpoint_tokens") = kCheckpointTokens;
  m.def("error_string", &error_string, py::arg("status"), "The text of a status that a CPU function returned.");
  m.def("prefer_large_pages", &prefer_large_pages, py::arg("address"), py::arg("bytes"),
        "Asks for large pages behind a block that is still to be written.");
  m.def("cpu_isa", [] { return std::string(cpu_kernels().isa); }, "The instruction-set level in use.");
  m.def("cpu_isa_levels", &cpu_levels, "The levels that this machine can run, lowest first.");
  m.def(
      "set_cpu_isa",
      [](const std::string& level) {
        if (!set_cpu_level(level)) throw py::value_error("no instruction-set level '" + level + "' on this machine");
      },
      py::arg("level"), "Asks for an instruction-set level.");
  m.def(
      "peak_rate",
      [](int64_t tokens, int threads, bool polynomial) {
        py::gil_scoped_release release;
        return cpu_kernels().peak_rate(tokens, threads, polynomial);
      },
      py::arg("tokens"), py::arg("threads"), py::arg("polynomial") = false,
      "Runs state updates alone and returns how many they were.");

  bind_ss2d(m);
  bind_ss2d_layer(m);
  bind_directional_scan(m);
  bind_linear(m);
  bind_selective_scan(m);
  bind_depthwise_conv2d(m);
  bind_causal_conv1d(m);
  bind_selective_state_update(m);
  bind_norm_gate(m);
  py::class_<InteractionBlock>(m, "InteractionBlock", py::module_local(),
                               "What the layout of the projection's signs depends on.")
      .def_readonly("rows", &InteractionBlock::rows, "Rows of a block.")
      .def_readonly("bytes", &InteractionBlock::bytes, "Bytes of a vector.");
  m.def(
      "interaction_block", [] { return cpu_kernels().interaction_block; },
      "The block and vector of the instruction-set level in use.");
  bind_interaction_reduce(m);
  bind_interaction_scale(m);
  bind_interaction_gating(m);
  bind_interaction_level(m);
}

}  // namespace mtlkit
