// The arguments that an operator has on both the CPU and a GPU. `to` is the path from Params to the struct that holds
// them, of type `Inputs`; the types of its members determine how each argument is read.
#pragma once

#include "bindings/function.h"
#include "common/causal_conv1d.h"
#include "common/dwconv_silu.h"
#include "common/interaction.h"
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

template <typename Params, typename... Path>
Argument<Params> interaction_sizes(Path... to) {
  using Shape = InteractionShape;
  return sizes<Params>("(B, C, H, W, P), P = 0 without a projection", member_of<Params>(to...), &Shape::batch,
                       &Shape::channels, &Shape::height, &Shape::width, &Shape::projected);
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> interaction_reduce_inputs(Path... to) {
  return {
      interaction_sizes<Params>(to..., &Inputs::shape),
      argument<Params>("x", "(B, C, L)", to..., &Inputs::x),
      argument<Params>("weight", "(P, C), absent without pooling", to..., &Inputs::weight),
      argument<Params>("bias", "(P), absent with weight", to..., &Inputs::bias),
      argument<Params>("attn", "(C), absent for the plain mean", to..., &Inputs::attn),
      argument<Params>("mean", "(B, C)", to..., &Inputs::mean),
      argument<Params>("pooled", "(B, P), 0 without weight", to..., &Inputs::pooled),
      argument<Params>("softmax", "(B, 2), largest logit and sum of exponentials, 0 without attn", to...,
                       &Inputs::softmax),
      argument<Params>("signs", "of the projection, laid out by interaction_block or the plan, 0 if not wanted", to...,
                       &Inputs::signs),
  };
}

// `to` is the path to the weights of the small layers, or to their gradients, whose names have a prefix.
template <typename Params, typename... Path>
Arguments<Params> gating_weights(const std::string& prefix, Path... to) {
  Arguments<Params> found;
  const auto add = [&](GatingWeight weight, const char* name, const char* shape) {
    found.push_back(argument<Params>(prefix + name, shape, to..., size_t{weight}));
  };
  add(kContextWeight, "context_weight", "(F, P)");
  add(kContextBias, "context_bias", "(F)");
  add(kClfGateWeight, "clf_gate_weight", "(F, F)");
  add(kClfGateBias, "clf_gate_bias", "(F)");
  add(kGainWeight, "gain_weight", "(C, F)");
  add(kGainBias, "gain_bias", "(C)");
  add(kSegGateWeight, "seg_gate_weight", "(C, C)");
  add(kSegGateBias, "seg_gate_bias", "(C)");
  add(kNormWeight, "norm_weight", "(F)");
  add(kNormBias, "norm_bias", "(F)");
  add(kFc1Weight, "fc1_weight", "(H, signals)");
  add(kFc1Bias, "fc1_bias", "(H)");
  add(kFc2Weight, "fc2_weight", "(2, H)");
  add(kFc2Bias, "fc2_bias", "(2)");
  add(kSegProj, "seg_proj", "(Q, C), 0 for two signals");
  add(kClfProj, "clf_proj", "(Q, F), 0 for two signals");
  return found;
}

template <typename Params, typename Inputs, typename... Path>
Arguments<Params> interaction_gating_inputs(Path... to) {
  using Shape = GatingShape;
  return Arguments<Params>{
             sizes<Params>("(B, C, P, F, H, Q)", member_of<Params>(to..., &Inputs::shape), &Shape::batch,
                           &Shape::channels, &Shape::projected, &Shape::features, &Shape::hidden, &Shape::queries),
             argument<Params>("tau", "strength of the modulation", to..., &Inputs::tau),
             argument<Params>("momentum", "of the running statistics", to..., &Inputs::momentum),
             argument<Params>("eps", "of the normalisation", to..., &Inputs::eps),
             argument<Params>("alignment", "whether the signals are alignment, energy and spread, else two variances",
                              to..., &Inputs::alignment),
             argument<Params>("training", "whether to normalise by the batch's statistics", to..., &Inputs::training),
             argument<Params>("mean", "(B, C)", to..., &Inputs::mean),
             argument<Params>("variance", "(B, C), read for two signals", to..., &Inputs::variance),
             argument<Params>("energy", "(B), read for three signals", to..., &Inputs::energy),
             argument<Params>("pooled", "(B, P)", to..., &Inputs::pooled),
             argument<Params>("f", "(B, F)", to..., &Inputs::f),
             argument<Params>("normaliser", "(2), 0 for the mean over the batch", to..., &Inputs::normaliser),
             argument<Params>("norm_mean", "(F)", to..., &Inputs::norm_mean),
             argument<Params>("norm_var", "(F)", to..., &Inputs::norm_var),
         } +
         gating_weights<Params>("", to..., &Inputs::weights) +
         Arguments<Params>{
             argument<Params>("mu", "(B, C)", to..., &Inputs::mu),
             argument<Params>("enhanced", "(B, F)", to..., &Inputs::enhanced),
             argument<Params>("gates", "(B, 2)", to..., &Inputs::gates),
             argument<Params>("signals", "three, (B) each", to..., &Inputs::signals),
             argument<Params>("kept", "for the backward pass, 2 B (F + C + Q) + 2 F elements", to..., &Inputs::kept),
         };
}

template <typename Params, typename Gradients, typename... Path>
Arguments<Params> interaction_gating_gradients(Path... to) {
  return Arguments<Params>{
             argument<Params>("dfactors", "(B, C), 0 for zeros", to..., &Gradients::dfactors),
             argument<Params>("dmu", "(B, C), 0 for zeros", to..., &Gradients::dmu),
             argument<Params>("dclf", "(B, F), 0 for zeros", to..., &Gradients::dclf),
             argument<Params>("denhanced", "(B, F), 0 for zeros", to..., &Gradients::denhanced),
             argument<Params>("dgates", "(B, 2), 0 for zeros", to..., &Gradients::dgates),
             argument<Params>("dsignals", "three, (B) each, 0 for zeros", to..., &Gradients::dsignals),
             argument<Params>("dmean", "(B, C), 0 if not wanted", to..., &Gradients::dmean),
             argument<Params>("dvariance", "(B, C), 0 if not wanted", to..., &Gradients::dvariance),
             argument<Params>("denergy", "(B), 0 if not wanted", to..., &Gradients::denergy),
             argument<Params>("dpooled", "(B, P), 0 if not wanted", to..., &Gradients::dpooled),
             argument<Params>("df", "(B, F), 0 if not wanted", to..., &Gradients::df),
         } +
         gating_weights<Params>("d", to..., &Gradients::dweights);
}

}  // namespace mtlkit
