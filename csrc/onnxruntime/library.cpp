// The entry point that ONNX Runtime loads: registers the operators with a session's options.
#include <exception>
#include <list>
#include <mutex>

#include "onnxruntime/session_node.h"
#include "onnxruntime/session_pool.h"

#if defined(_WIN32)
#define MTLKIT_EXPORT extern "C" __declspec(dllexport)
#else
#define MTLKIT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace mtlkit {
namespace {

struct RegisteredOperator : ort::Operator {
  ort::Api* api;
  const NodeKind* kind;
  ThreadCount* threads;
};

const RegisteredOperator& registered(const ort::Operator* op) { return *static_cast<const RegisteredOperator*>(op); }
const NodeKind& kind_of(const ort::Operator* op) { return *registered(op).kind; }

struct NodeKernel {
  const RegisteredOperator& op;
  std::unique_ptr<Kernel> kernel;
};

// Runs f and returns a status for what it throws; null if it throws nothing.
template <typename F>
ort::Status* status_of(ort::Api* api, F f) {
  try {
    f();
    return nullptr;
  } catch (const Refused& refused) {
    return ort::CreateStatus::call(api, ort::kInvalidArgument, refused.what());
  } catch (const std::bad_alloc&) {
    return ort::CreateStatus::call(api, ort::kFail, "out of memory");
  } catch (const std::exception& error) {
    return ort::CreateStatus::call(api, ort::kFail, error.what());
  }
}

ort::Status* create_kernel(const ort::Operator* op, ort::Api* api, const ort::Attributes* attributes, void** kernel) {
  return status_of(
      api, [&] { *kernel = new NodeKernel{registered(op), kind_of(op).make(SessionAttributes(api, attributes))}; });
}

ort::Status* compute(void* kernel, ort::Call* call) {
  const NodeKernel& node = *static_cast<NodeKernel*>(kernel);
  ort::Api* api = node.op.api;
  return status_of(api, [&] {
    SessionPool pool(api, call);
    const UsePool use(pool);
    node.kernel->compute(SessionCall(api, call), node.op.threads->of(api, call));
  });
}

void describe(ort::Operator& op) {
  op.name = [](const ort::Operator* op) { return kind_of(op).name; };
  op.provider = [](const ort::Operator*) { return "CPUExecutionProvider"; };
  op.input_type = [](const ort::Operator* op, size_t input) {
    return kind_of(op).integers >> input & 1 ? ort::kInt32 : ort::kFloat;
  };
  op.output_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
  op.inputs = [](const ort::Operator* op) { return kind_of(op).required + kind_of(op).optional; };
  op.outputs = [](const ort::Operator* op) { return kind_of(op).outputs; };
  op.input_characteristic = [](const ort::Operator* op, size_t input) {
    return input < kind_of(op).required ? ort::kRequired : ort::kOptional;
  };
  op.output_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
  op.input_memory_type = [](const ort::Operator*, size_t) { return ort::kDefaultMemory; };
  op.create_kernel = create_kernel;
  op.compute = compute;
  op.destroy_kernel = [](void* kernel) { delete static_cast<NodeKernel*>(kernel); };
  op.infer_shapes = [](const ort::Operator* op, ort::Inference* inference) -> ort::Status* {
    kind_of(op).infer(SessionShapes(registered(op).api, inference));
    return nullptr;
  };
  op.start_version = op.end_version = [](const ort::Operator*) { return 1; };
}

// The operators of one set of options. They live as long as the process, because ONNX Runtime does not report when the
// last session that uses them ends.
struct Registration {
  ThreadCount threads;
  std::vector<RegisteredOperator> operators;
};

ort::Status* add_operators(ort::SessionOptions* options, ort::Api* api) {
  static std::mutex one_at_a_time;
  static std::list<Registration> registrations;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Registration& here = registrations.emplace_back();
  for (const NodeKind& kind : node_kinds()) {
    RegisteredOperator op{};
    describe(op);
    op.api = api;
    op.kind = &kind;
    op.threads = &here.threads;
    here.operators.push_back(op);
  }
  ort::Domain* domain = nullptr;
  ort::Status* status = ort::CreateDomain::call(api, "mtlkit", &domain);
  for (size_t i = 0; !status && i < here.operators.size(); ++i) {
    status = ort::AddOperator::call(api, domain, &here.operators[i]);
  }
  return status ? status : ort::AddDomain::call(api, options, domain);
}

}  // namespace
}  // namespace mtlkit

MTLKIT_EXPORT mtlkit::ort::Status* RegisterCustomOps(mtlkit::ort::SessionOptions* options,
                                                     const mtlkit::ort::ApiBase* base) {
  using namespace mtlkit;
  if (ort::Api* api = base->get_api(ort::kVersion)) {
    ort::Status* thrown_status = nullptr;
    ort::Status* refused = status_of(api, [&] { thrown_status = add_operators(options, api); });
    return refused ? refused : thrown_status;
  }
  const std::string words =
      std::string("mtlkit: expected ONNX Runtime ") + ort::kRelease + " or later, got " + base->get_version_string();
  return ort::CreateStatus::call(base->get_api(1), ort::kFail, words.c_str());
}
