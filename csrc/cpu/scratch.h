// Scratch memory for a call.
#pragma once

#include <new>

#include "cpu/integer_math.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Aligned scratch memory, freed by the destructor. `ok` is false if the allocation failed.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(max(count, 1) * sizeof(T), kAlignment, std::nothrow))) {}
  ~Scratch() { ::operator delete(data_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return data_ != nullptr; }
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
