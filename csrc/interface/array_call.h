// A call of a node whose tensors are arrays of a C program.
#pragma once

#include <deque>
#include <initializer_list>
#include <utility>

#include "include/mtlkit.h"
#include "inference/node.h"

namespace mtlkit {

struct NamedOutput {
  const char* name;
  const mtlkit_output& array;
  bool optional = false;
};

class ArrayCall : public NodeCall {
 public:
  // Inputs and outputs in the node's order.
  ArrayCall(std::initializer_list<const mtlkit_input*> inputs, std::initializer_list<NamedOutput> outputs)
      : inputs_(inputs), outputs_(outputs) {}

  Input input(const char* name, size_t place) const override;
  float* output(size_t place, const Sizes& sizes) const override;

 private:
  std::vector<const mtlkit_input*> inputs_;
  std::vector<NamedOutput> outputs_;
  mutable std::deque<std::vector<float>> unwanted_;  // buffers for outputs that the caller left out
};

class ArrayAttributes : public NodeAttributes {
 public:
  ArrayAttributes(std::initializer_list<std::pair<const char*, double>> values) : values_(values) {}

  int64_t integer(const char* name, int64_t missing) const override;
  float number(const char* name, float missing) const override;

 private:
  const double* find(const char* name) const;

  std::vector<std::pair<const char*, double>> values_;
};

}  // namespace mtlkit
