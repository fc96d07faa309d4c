// The plain C interface: every function packs its arrays and calls a node of csrc/inference.
#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/thread_pool.h"
#include "include/mtlkit.h"
#include "interface/array_call.h"

#define MTLKIT_WORDS_OF(text) #text
#define MTLKIT_WORDS(text) MTLKIT_WORDS_OF(text)

using mtlkit::ArrayAttributes;
using mtlkit::ArrayCall;
using mtlkit::HostPool;
using mtlkit::Refused;

struct mtlkit_pool {
  std::unique_ptr<HostPool> pool;
  int threads;
};

namespace {

thread_local std::string last_error;

mtlkit_status failed(mtlkit_status status, const char* words) {
  try {
    last_error = words;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

// Runs f and returns a status for what it throws.
template <typename F>
mtlkit_status status_of(F f) {
  try {
    f();
    return MTLKIT_OK;
  } catch (const Refused& refused) {
    return failed(MTLKIT_INVALID_ARGUMENT, refused.what());
  } catch (const std::bad_alloc&) {
    return failed(MTLKIT_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return failed(MTLKIT_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(MTLKIT_FAILED, error.what());
  }
}

void expect(const void* given, const char* name) {
  if (!given) throw Refused(std::string(name) + ": expected an address, got NULL");
}

class ProgramPool : public HostPool {
 public:
  ProgramPool(mtlkit_run run, void* host) : run_(run), host_(host) {}

  void run(int threads, mtlkit::TeamWork work) override {
    Shares shares{work, threads};
    run_(
        host_, threads,
        [](void* given, int i) {
          const Shares& shares = *static_cast<Shares*>(given);
          shares.work.call(shares.work.data, i, shares.count);
        },
        &shares);
  }

 private:
  struct Shares {
    mtlkit::TeamWork work;
    int count;
  };

  mtlkit_run run_;
  void* host_;
};

const mtlkit::NodeKind& kind_named(const char* name) {
  const auto& kinds = mtlkit::node_kinds();
  return *std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) { return std::string(name) == kind.name; });
}

// An offset, clamped so that sums with sizes cannot overflow.
double channel(int64_t offset) { return static_cast<double>(std::clamp<int64_t>(offset, -1, int64_t{1} << 50)); }

// Runs a node on the threads of a pool.
void run_node(const char* name, const ArrayAttributes& attributes, const ArrayCall& call, mtlkit_pool* pool) {
  const auto kernel = kind_named(name).make(attributes);
  if (!pool) return kernel->compute(call, 1);
  const mtlkit::UsePool use(*pool->pool);
  kernel->compute(call, pool->threads);
}

// Indices as an input of a node: the node knows from an input's position whether it holds integers.
mtlkit_input integers(const mtlkit_indices& indices) {
  mtlkit_input input = {reinterpret_cast<const float*>(indices.data), indices.rank, {}};
  std::copy_n(indices.sizes, MTLKIT_MAX_RANK, input.sizes);
  return input;
}

void give_pool(std::unique_ptr<HostPool> made, int threads, mtlkit_pool** pool) {
  *pool = new mtlkit_pool{std::move(made), threads};
}

}  // namespace

// ---- Versions, errors and instruction sets --------------------------------------------------------------------------

int mtlkit_interface_version(void) { return MTLKIT_INTERFACE_VERSION; }

const char* mtlkit_version(void) { return MTLKIT_WORDS(MTLKIT_VERSION); }

const char* mtlkit_last_error(void) { return last_error.c_str(); }

const char* mtlkit_isa(void) { return mtlkit::cpu_kernels().isa; }

const char* const* mtlkit_isa_levels(void) {
  static const std::vector<std::string> names = mtlkit::cpu_levels();
  static const std::vector<const char*> levels = [] {
    std::vector<const char*> found;
    for (const std::string& name : names) found.push_back(name.c_str());
    found.push_back(nullptr);
    return found;
  }();
  return levels.data();
}

mtlkit_status mtlkit_set_isa(const char* level) {
  return status_of([&] {
    expect(level, "level");
    if (mtlkit::set_cpu_level(level)) return;
    std::string known;
    for (const std::string& name : mtlkit::cpu_levels()) known += (known.empty() ? "" : ", ") + name;
    throw Refused(std::string("level: expected one that this machine can run (") + known + "), got '" + level + "'");
  });
}

// ---- Threads --------------------------------------------------------------------------------------------------------

mtlkit_status mtlkit_pool_create(int threads, mtlkit_pool** pool) {
  return status_of([&] {
    expect(pool, "pool");
    *pool = nullptr;
    if (threads < 0) throw Refused("threads: expected a number that is at least 0, got " + std::to_string(threads));
    const int wanted = threads ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    auto made = std::make_unique<mtlkit::ThreadPool>(wanted);
    const int found = made->threads();
    give_pool(std::move(made), found, pool);
  });
}

mtlkit_status mtlkit_pool_of_host(int shares, mtlkit_run run, void* host, mtlkit_pool** pool) {
  return status_of([&] {
    expect(pool, "pool");
    *pool = nullptr;
    if (shares < 1) throw Refused("shares: expected a number that is at least 1, got " + std::to_string(shares));
    if (!run) throw Refused("run: expected a function, got NULL");
    give_pool(std::make_unique<ProgramPool>(run, host), shares, pool);
  });
}

int mtlkit_pool_threads(const mtlkit_pool* pool) { return pool ? pool->threads : 1; }

void mtlkit_pool_destroy(mtlkit_pool* pool) { delete pool; }

// ---- Operators ------------------------------------------------------------------------------------------------------

mtlkit_status mtlkit_ss2d(const mtlkit_ss2d_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_ss2d_arguments& a = *arguments;
    run_node("SS2D", {{"norm", a.norm}, {"eps", a.eps}, {"z_offset", channel(a.z_offset)}},
             ArrayCall({&a.u, &a.x_dbl, &a.dt_weight, &a.dt_bias, &a.A_logs, &a.Ds, &a.norm_weight, &a.norm_bias, &a.z},
                       {{"y", a.y}}),
             pool);
  });
}

mtlkit_status mtlkit_selective_scan(const mtlkit_selective_scan_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_selective_scan_arguments& a = *arguments;
    run_node("SelectiveScan", {{"delta_softplus", a.delta_softplus}},
             ArrayCall({&a.u, &a.delta, &a.A, &a.B, &a.C, &a.D, &a.z, &a.delta_bias},
                       {{"out", a.out}, {"last_state", a.last_state, true}}),
             pool);
  });
}

mtlkit_status mtlkit_directional_scan(const mtlkit_directional_scan_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_directional_scan_arguments& a = *arguments;
    const mtlkit_input order = integers(a.order), seq_idx = integers(a.seq_idx);
    const ArrayCall call(
        {&a.u, &a.x_dbl, &a.dt_weight, &a.dt_bias, &a.A_logs, &a.Ds, &order, &seq_idx, &a.initial_state},
        {{"y", a.y}, {"last_state", a.last_state, true}});
    run_node(a.merge ? "DirectionalScan" : "DirectionalScans", {}, call, pool);
  });
}

mtlkit_status mtlkit_causal_conv1d(const mtlkit_causal_conv1d_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_causal_conv1d_arguments& a = *arguments;
    const mtlkit_input seq_idx = integers(a.seq_idx);
    const ArrayCall call({&a.x, &a.weight, &a.bias, &seq_idx, &a.initial_states},
                         {{"y", a.y}, {"last_states", a.last_states, true}});
    run_node("CausalConv1d", {{"silu", a.silu}, {"offset", channel(a.offset)}}, call, pool);
  });
}

mtlkit_status mtlkit_dwconv_silu(const mtlkit_dwconv_silu_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_dwconv_silu_arguments& a = *arguments;
    run_node("DwconvSilu", {{"offset", channel(a.offset)}}, ArrayCall({&a.x, &a.weight, &a.bias}, {{"y", a.y}}), pool);
  });
}

mtlkit_status mtlkit_norm_gate(const mtlkit_norm_gate_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_norm_gate_arguments& a = *arguments;
    run_node("NormGate", {{"eps", a.eps}}, ArrayCall({&a.x, &a.weight, &a.bias, &a.z}, {{"y", a.y}}), pool);
  });
}

mtlkit_status mtlkit_task_interaction(const mtlkit_task_interaction_arguments* arguments, mtlkit_pool* pool) {
  return status_of([&] {
    expect(arguments, "arguments");
    const mtlkit_task_interaction_arguments& a = *arguments;
    if ((a.seg_proj.rank > 0) != (a.clf_proj.rank > 0)) {
      throw Refused("clf_proj: expected to be given where seg_proj is, and only there");
    }
    const ArrayCall call({&a.x,
                          &a.f,
                          &a.proj_weight,
                          &a.proj_bias,
                          &a.norm_mean,
                          &a.norm_var,
                          &a.context_weight,
                          &a.context_bias,
                          &a.clf_gate_weight,
                          &a.clf_gate_bias,
                          &a.gain_weight,
                          &a.gain_bias,
                          &a.seg_gate_weight,
                          &a.seg_gate_bias,
                          &a.norm_weight,
                          &a.norm_bias,
                          &a.fc1_weight,
                          &a.fc1_bias,
                          &a.fc2_weight,
                          &a.fc2_bias,
                          &a.seg_proj,
                          &a.clf_proj,
                          &a.attn,
                          &a.normaliser},
                         {{"seg", a.seg},
                          {"clf", a.clf},
                          {"gates", a.gates, true},
                          {"signals", a.signals, true},
                          {"enhanced", a.enhanced, true},
                          {"mu", a.mu, true}});
    run_node("TaskInteraction", {{"tau", a.tau}, {"eps", a.eps}}, call, pool);
  });
}
