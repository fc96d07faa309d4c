#include <stdexcept>

#include "operators.h"

namespace {

mtlkit_input input(Case& c, const char* name) {
  mtlkit_input array = {};
  if (!c.has(name)) return array;
  const std::vector<int64_t>& sizes = c.inputs.at(name).sizes;
  array.data = c.data(name);
  array.rank = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) array.sizes[i] = sizes[i];
  return array;
}

mtlkit_output output(Case& c, const char* name) {
  mtlkit_output array = {};
  if (!c.expected.count(name)) return array;
  const std::vector<int64_t>& sizes = c.expected.at(name).sizes;
  array.data = c.output(name);
  array.rank = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) array.sizes[i] = sizes[i];
  return array;
}

mtlkit_status ss2d(Case& c, mtlkit_pool* pool) {
  mtlkit_ss2d_arguments a = {};
  a.u = input(c, "u");
  a.x_dbl = input(c, "x_dbl");
  a.dt_weight = input(c, "dt_weight");
  a.dt_bias = input(c, "dt_bias");
  a.A_logs = input(c, "A_logs");
  a.Ds = input(c, "Ds");
  a.norm = static_cast<int32_t>(c.number("norm"));
  a.eps = static_cast<float>(c.number("eps"));
  a.norm_weight = input(c, "norm_weight");
  a.norm_bias = input(c, "norm_bias");
  a.z = input(c, "z");
  a.z_offset = static_cast<int64_t>(c.number("z_offset"));
  a.y = output(c, "y");
  return mtlkit_ss2d(&a, pool);
}

mtlkit_status selective_scan(Case& c, mtlkit_pool* pool) {
  mtlkit_selective_scan_arguments a = {};
  a.u = input(c, "u");
  a.delta = input(c, "delta");
  a.A = input(c, "A");
  a.B = input(c, "B");
  a.C = input(c, "C");
  a.D = input(c, "D");
  a.z = input(c, "z");
  a.delta_bias = input(c, "delta_bias");
  a.delta_softplus = static_cast<int32_t>(c.number("delta_softplus"));
  a.out = output(c, "out");
  a.last_state = output(c, "last_state");
  return mtlkit_selective_scan(&a, pool);
}

mtlkit_status directional_scan(Case& c, mtlkit_pool* pool) {
  mtlkit_directional_scan_arguments a = {};
  a.u = input(c, "u");
  a.x_dbl = input(c, "x_dbl");
  a.dt_weight = input(c, "dt_weight");
  a.dt_bias = input(c, "dt_bias");
  a.A_logs = input(c, "A_logs");
  a.Ds = input(c, "Ds");
  a.initial_state = input(c, "initial_state");
  const std::vector<double>& tokens = c.inputs.at("order").values;
  const std::vector<int32_t> order(tokens.begin(), tokens.end());
  a.order = {order.data(), 2, {c.size("order", 0), c.size("order", 1)}};
  a.merge = static_cast<int32_t>(c.number("merge"));
  a.y = output(c, "y");
  a.last_state = output(c, "last_state");
  return mtlkit_directional_scan(&a, pool);
}

mtlkit_status causal_conv1d(Case& c, mtlkit_pool* pool) {
  mtlkit_causal_conv1d_arguments a = {};
  a.x = input(c, "x");
  a.weight = input(c, "weight");
  a.bias = input(c, "bias");
  a.initial_states = input(c, "initial_states");
  a.offset = static_cast<int64_t>(c.number("offset"));
  a.silu = static_cast<int32_t>(c.number("silu"));
  a.y = output(c, "y");
  a.last_states = output(c, "last_states");
  return mtlkit_causal_conv1d(&a, pool);
}

mtlkit_status dwconv_silu(Case& c, mtlkit_pool* pool) {
  mtlkit_dwconv_silu_arguments a = {};
  a.x = input(c, "x");
  a.weight = input(c, "weight");
  a.bias = input(c, "bias");
  a.offset = static_cast<int64_t>(c.number("offset"));
  a.y = output(c, "y");
  return mtlkit_dwconv_silu(&a, pool);
}

mtlkit_status norm_gate(Case& c, mtlkit_pool* pool) {
  mtlkit_norm_gate_arguments a = {};
  a.x = input(c, "x");
  a.weight = input(c, "weight");
  a.bias = input(c, "bias");
  a.z = input(c, "z");
  a.eps = static_cast<float>(c.number("eps"));
  a.y = output(c, "y");
  return mtlkit_norm_gate(&a, pool);
}

mtlkit_status task_interaction(Case& c, mtlkit_pool* pool) {
  mtlkit_task_interaction_arguments a = {};
  a.x = input(c, "x");
  a.f = input(c, "f");
  a.proj_weight = input(c, "proj_weight");
  a.proj_bias = input(c, "proj_bias");
  a.attn = input(c, "attn_weight");
  a.context_weight = input(c, "context_weight");
  a.context_bias = input(c, "context_bias");
  a.norm_weight = input(c, "norm_weight");
  a.norm_bias = input(c, "norm_bias");
  a.norm_mean = input(c, "norm_mean");
  a.norm_var = input(c, "norm_var");
  a.clf_gate_weight = input(c, "clf_gate_weight");
  a.clf_gate_bias = input(c, "clf_gate_bias");
  a.gain_weight = input(c, "gain_weight");
  a.gain_bias = input(c, "gain_bias");
  a.seg_gate_weight = input(c, "seg_gate_weight");
  a.seg_gate_bias = input(c, "seg_gate_bias");
  a.fc1_weight = input(c, "fc1_weight");
  a.fc1_bias = input(c, "fc1_bias");
  a.fc2_weight = input(c, "fc2_weight");
  a.fc2_bias = input(c, "fc2_bias");
  a.seg_proj = input(c, "seg_proj");
  a.clf_proj = input(c, "clf_proj");
  a.tau = static_cast<float>(c.number("tau"));
  a.eps = static_cast<float>(c.number("eps"));
  a.seg = output(c, "seg");
  a.clf = output(c, "clf");
  a.gates = output(c, "gates");
  a.signals = output(c, "signals");
  a.enhanced = output(c, "enhanced");
  return mtlkit_task_interaction(&a, pool);
}

}  // namespace

void run_forward(Case& c, mtlkit_pool* pool) {
  static const std::map<std::string, mtlkit_status (*)(Case&, mtlkit_pool*)> operators = {
      {"ss2d", ss2d},
      {"selective_scan", selective_scan},
      {"dwconv_silu", dwconv_silu},
      {"norm_gate", norm_gate},
      {"task_interaction", task_interaction},
      {"directional_scan", directional_scan},
      {"causal_conv1d", causal_conv1d},
  };
  if (operators.at(c.kind)(c, pool) != MTLKIT_OK) throw std::runtime_error(mtlkit_last_error());
}
