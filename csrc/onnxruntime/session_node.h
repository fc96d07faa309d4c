// Nodes of a session of ONNX Runtime.
#pragma once

#include "inference/node.h"
#include "onnxruntime/interface.h"

namespace mtlkit {

// Throws if a status is an error.
void check_status(ort::Api* api, ort::Status* status);

class SessionCall : public NodeCall {
 public:
  SessionCall(ort::Api* api, ort::Call* call);

  Input input(const char* name, size_t place) const override;
  float* output(size_t place, const Sizes& sizes) const override;

 private:
  ort::Api* api_;
  ort::Call* call_;
  size_t inputs_;
};

class SessionAttributes : public NodeAttributes {
 public:
  SessionAttributes(ort::Api* api, const ort::Attributes* attributes) : api_(api), attributes_(attributes) {}

  int64_t integer(const char* name, int64_t missing) const override;
  float number(const char* name, float missing) const override;

 private:
  ort::Api* api_;
  const ort::Attributes* attributes_;
};

class SessionShapes : public NodeShapes {
 public:
  SessionShapes(ort::Api* api, ort::Inference* inference) : api_(api), inference_(inference) {}

  void same(size_t output, size_t input) const override;
  void set(size_t output, std::initializer_list<Dimension> dimensions) const override;

 private:
  void set(size_t output, const Sizes& sizes, std::vector<const char*>& symbols) const;

  ort::Api* api_;
  ort::Inference* inference_;
};

}  // namespace mtlkit
