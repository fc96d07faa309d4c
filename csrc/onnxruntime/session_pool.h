// Runs the kernels' loops on the threads of an ONNX Runtime session: additional OpenMP threads would compete with them
// for the processors.
#pragma once

#include <atomic>

#include "cpu/team.h"
#include "onnxruntime/interface.h"

namespace mtlkit {

// The number of threads of the sessions of one set of options. ONNX Runtime's interface does not report it, so the
// first call measures it.
class ThreadCount {
 public:
  int of(ort::Api* api, const ort::Call* call);

 private:
  std::atomic<int> known_{0};
};

class SessionPool : public HostPool {
 public:
  SessionPool(ort::Api* api, const ort::Call* call) : api_(api), call_(call) {}
  void run(int threads, TeamWork work) override;

 private:
  ort::Api* api_;
  const ort::Call* call_;
};

}  // namespace mtlkit
