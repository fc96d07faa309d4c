// How the bindings read what Python passes: see mtlkit/operators/_launch.py.
#pragma once

#include <pybind11/pybind11.h>

#include "common/tensor.h"

namespace mtlkit {

// (address, dtype, (stride, ...)), or None for an argument that was not given.
template <int kRank>
Tensor<kRank> tensor(const pybind11::object& object) {
  Tensor<kRank> result;
  if (object.is_none()) return result;
  const auto fields = pybind11::cast<pybind11::tuple>(object);
  result.data = reinterpret_cast<void*>(pybind11::cast<uintptr_t>(fields[0]));
  result.dtype = static_cast<DType>(pybind11::cast<int32_t>(fields[1]));
  const auto strides = pybind11::cast<pybind11::tuple>(fields[2]);
  if (strides.size() != kRank) throw pybind11::value_error("a tensor of another rank was expected");
  for (int i = 0; i < kRank; ++i) result.stride[i] = pybind11::cast<int64_t>(strides[i]);
  return result;
}

inline void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

}  // namespace mtlkit
