// A tensor as Python passes it: an address, a dtype and strides in elements. No framework header is needed.
#pragma once

#include <cstdint>

namespace mtlkit {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

template <typename T>
inline constexpr DType dtype_of = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// Strides count elements. The address of an absent argument is null.
template <int kRank>
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride[kRank] = {};

  constexpr explicit operator bool() const { return data != nullptr; }
};

inline constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// The address of the element `offset` elements after the first.
template <int kRank>
inline void* at(const Tensor<kRank>& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data) + offset * size_of(tensor.dtype);
}

}  // namespace mtlkit
