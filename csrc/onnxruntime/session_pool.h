// The threads of a session of ONNX Runtime, for the kernels' loops: OpenMP's beside them would take the processors from
// each other.
#pragma once

#include <atomic>

#include "cpu/team.h"
#include "onnxruntime/interface.h"

namespace mtlkit {

// How many threads the sessions of one set of options have; the interface does not say, so the first call finds out.
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
