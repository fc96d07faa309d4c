// A node is an operator for inference engines without PyTorch, in float32. This header declares a node's inputs and
// outputs, independent of the engine that holds them, and the errors for invalid ones.
#pragma once

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/tensor.h"

namespace mtlkit {

// Thrown for an invalid call or node; the message goes into the status.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Sizes = std::vector<int64_t>;

// Sizes as messages show them, e.g. "(2, 3)".
std::string spelled(const Sizes& sizes);

// A contiguous input, float32 or int32; data is null if it was left out.
struct Input {
  const char* name = "";
  float* data = nullptr;
  Sizes sizes;
  bool given = false;

  int64_t elements() const;

  // The data of an int32 input.
  const int32_t* integers() const { return reinterpret_cast<const int32_t*>(data); }

  // Throw unless the input has `rank` dimensions, with sizes of at least 1 from dimension `first` on, or the given
  // shape. `letters` is the expected shape in the message.
  void check_rank(const char* letters, size_t rank, size_t first = 0) const;
  void check_shape(const char* letters, const Sizes& expected) const;
};

// A kernel's tensor; absent if its address is null.
template <typename... Strides>
Tensor<sizeof...(Strides)> tensor(float* data, Strides... strides) {
  return {data, DType::kFloat32, {strides...}};
}

// One call of a node.
class NodeCall {
 public:
  virtual ~NodeCall() = default;
  virtual Input input(const char* name, size_t place) const = 0;
  virtual float* output(size_t place, const Sizes& sizes) const = 0;
};

// The attributes of a node.
class NodeAttributes {
 public:
  virtual ~NodeAttributes() = default;
  virtual int64_t integer(const char* name, int64_t missing) const = 0;
  virtual float number(const char* name, float missing) const = 0;
};

// A dimension of an output: a dimension of an input, or a number.
struct Dimension {
  enum Kind { kOfInput, kNumber } kind;
  int64_t value;  // the index of the input, or the number
  size_t dimension = 0;
};

inline Dimension of_input(int64_t input, size_t dimension) { return {Dimension::kOfInput, input, dimension}; }
inline Dimension number(int64_t value) { return {Dimension::kNumber, value}; }

// Shape inference before a node runs: the known input shapes, from which the output shapes follow. Unknown sizes stay
// open.
class NodeShapes {
 public:
  virtual ~NodeShapes() = default;
  virtual void same(size_t output, size_t input) const = 0;
  virtual void set(size_t output, std::initializer_list<Dimension> dimensions) const = 0;
};

// The computation of one node, with its attributes.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const NodeCall& call, int threads) const = 0;
};

struct NodeKind {
  const char* name;
  size_t required, optional, outputs;
  std::unique_ptr<Kernel> (*make)(const NodeAttributes&);
  void (*infer)(const NodeShapes&);
  uint64_t integers = 0;  // the bit of each input that is int32
};

// All node kinds; defined in csrc/inference/operators.cpp.
const std::vector<NodeKind>& node_kinds();

}  // namespace mtlkit
