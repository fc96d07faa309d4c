// The arguments that an operator has on the CPU and on a GPU alike. `to` leads from Params to the struct that has them,
// of the type `Inputs`; its members decide how each is read.
#pragma once

#include "bindings/function.h"
#include "common/causal_conv1d.h"
#include "common/dwconv_silu.h"
#include "common/norm_gate.h"
#include "common/selective_scan.h"
#include "common/ss2d.h"

namespace mtlkit {

template <typename Params, typename... Path>
Argument<Params> ss2d_sizes(Path... to) {
  using Shape = SS2DShape;
  return sizes<Params>("(B, D, H, W, N, R)", member_of<Params>(to...), &Shape::batch, &Shape::channels, &Shape::height,
                       &Shape::width, &Shape::states, &Shape::rank);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> ss2d_inputs(Path... to) {
  return {
      ss2d_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("u", "(B, D, H, W)", to..., &Inputs::u),
      argument<Params>("x_dbl", "(B, H, W, 4, R + 2 N), contiguous", to..., &Inputs::x_dbl),
      argument<Params>("dt_weight", "(4, D, R)", to..., &Inputs::dt_weight),
      argument<Params>("dt_bias", "(4, D)", to..., &Inputs::dt_bias),
      argument<Params>("A_logs", "(4 D, N)", to..., &Inputs::A_logs),
      argument<Params>("Ds", "(4 D)", to..., &Inputs::Ds),
      argument<Params>("checkpoints", "states kept for the backward pass, 0 for none", to..., &Inputs::checkpoints),
  };
}

template <typename Params, typename... Path>
Argument<Params> selective_scan_sizes(Path... to) {
  using Shape = SelectiveScanShape;
  return sizes<Params>("(B, D, L, N, G)", member_of<Params>(to...), &Shape::batch, &Shape::channels, &Shape::tokens,
                       &Shape::states, &Shape::groups);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> selective_scan_inputs(Path... to) {
  return {
      selective_scan_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("u", "(B, D, L); on a GPU (B, G, D / G, L), as all of this shape", to..., &Inputs::u),
      argument<Params>("delta", "like u", to..., &Inputs::delta),
      argument<Params>("A", "(D, N)", to..., &Inputs::A),
      argument<Params>("B", "(B, G, N, L), or (D, N, 1, 1) if it does not vary", to..., &Inputs::B),
      argument<Params>("C", "like B", to..., &Inputs::C),
      argument<Params>("variable_B", "whether B varies with the tokens", to..., &Inputs::variable_B),
      argument<Params>("variable_C", "whether C varies with the tokens", to..., &Inputs::variable_C),
      argument<Params>("D", "(D), may be absent", to..., &Inputs::D),
      argument<Params>("delta_bias", "(D), may be absent", to..., &Inputs::delta_bias),
      argument<Params>("delta_softplus", "whether delta goes through softplus", to..., &Inputs::delta_softplus),
      argument<Params>("checkpoints", "states kept for the backward pass, 0 for none", to..., &Inputs::checkpoints),
  };
}

template <typename Params, typename... Path>
Argument<Params> dwconv_silu_sizes(Path... to) {
  using Shape = DwconvSiluShape;
  return sizes<Params>("(B, D, H, W)", member_of<Params>(to...), &Shape::batch, &Shape::channels, &Shape::height,
                       &Shape::width);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> dwconv_silu_inputs(Path... to) {
  return {
      dwconv_silu_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("x", "(B, D, H, W)", to..., &Inputs::x),
      argument<Params>("weight", "(D, 3, 3)", to..., &Inputs::weight),
      argument<Params>("bias", "(D), may be absent", to..., &Inputs::bias),
  };
}

template <typename Params, typename... Path>
Argument<Params> causal_conv1d_sizes(Path... to) {
  using Shape = CausalConv1dShape;
  return sizes<Params>("(B, D, L, w)", member_of<Params>(to...), &Shape::batch, &Shape::channels, &Shape::tokens,
                       &Shape::width);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> causal_conv1d_inputs(Path... to) {
  return {
      causal_conv1d_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("x", "(B, D, L)", to..., &Inputs::x),
      argument<Params>("weight", "(D, w)", to..., &Inputs::weight),
      argument<Params>("bias", "(D), may be absent", to..., &Inputs::bias),
      argument<Params>("seq_idx", "(B, L), 32 bits, 0 for one sequence", to..., &Inputs::seq_idx),
      argument<Params>("initial_states", "(B, D, w - 1), may be absent", to..., &Inputs::initial_states),
      argument<Params>("silu", "whether SiLU follows", to..., &Inputs::silu),
  };
}

template <typename Params, typename... Path>
Argument<Params> norm_gate_sizes(Path... to) {
  return sizes<Params>("(rows, D)", member_of<Params>(to...), &NormGateShape::rows, &NormGateShape::channels);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> norm_gate_inputs(Path... to) {
  return {
      norm_gate_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("x", "(rows, D), channels side by side, as all of this shape", to..., &Inputs::x),
      argument<Params>("weight", "(D), absent for ones", to..., &Inputs::weight),
      argument<Params>("bias", "(D), absent for zeros", to..., &Inputs::bias),
      argument<Params>("z", "(rows, D), absent without a gate", to..., &Inputs::z),
      argument<Params>("eps", "what is added to the variance", to..., &Inputs::eps),
  };
}

}  // namespace mtlkit
