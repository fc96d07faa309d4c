// Scratch memory of a call.
#pragma once

#include <cstdlib>

#include "cpu/integer_math.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Aligned scratch memory that gives itself back. `ok` is false where the system had none.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (max(count, 1) * sizeof(T) + 63) / 64 * 64))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return data_ != nullptr; }
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
