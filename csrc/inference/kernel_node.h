// Shared by the nodes that call the CPU kernels.
#pragma once

#include <new>

#include "inference/node.h"

namespace mtlkit {

inline constexpr int64_t kMostStates = 256;

// Throws if a kernel's status is an error.
inline void check(int status) {
  if (status != kOk) throw std::bad_alloc();
}

inline void check_attribute(bool fits, const char* words) {
  if (!fits) throw Refused(words);
}

template <typename K>
std::unique_ptr<Kernel> make(const NodeAttributes& attributes) {
  return std::make_unique<K>(attributes);
}

// The node kinds of csrc/inference/sequence_operators.cpp and map_operators.cpp.
const std::vector<NodeKind>& sequence_node_kinds();
const std::vector<NodeKind>& map_node_kinds();

}  // namespace mtlkit
