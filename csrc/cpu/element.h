// The element types of tensors: how vectors of the type of computation are read and written.
#pragma once

#include "cpu/simd.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// The four element types: reads and writes vectors of T and single values.
template <DType dtype>
struct Element;

template <>
struct Element<DType::kFloat32> {
  using Storage = float;
  static MTLKIT_INLINE FloatVec read(const float* p, float) { return load(p); }
  static MTLKIT_INLINE void write(float* p, FloatVec v) { store(p, v); }
  static MTLKIT_INLINE DoubleVec read(const float* p, double) {
    DoubleVec v;
    for (int i = 0; i < kLanes<double>; ++i) v[i] = p[i];
    return v;
  }
  static MTLKIT_INLINE void write(float* p, DoubleVec v) {
    for (int i = 0; i < kLanes<double>; ++i) p[i] = static_cast<float>(v[i]);
  }
};

template <>
struct Element<DType::kFloat64> {
  using Storage = double;
  static MTLKIT_INLINE DoubleVec read(const double* p, double) { return load(p); }
  static MTLKIT_INLINE void write(double* p, DoubleVec v) { store(p, v); }
  static MTLKIT_INLINE FloatVec read(const double* p, float) {
    FloatVec v;
    for (int i = 0; i < kLanes<float>; ++i) v[i] = static_cast<float>(p[i]);
    return v;
  }
  static MTLKIT_INLINE void write(double* p, FloatVec v) {
    for (int i = 0; i < kLanes<float>; ++i) p[i] = v[i];
  }
};

// Shared by the two 16-bit types: bits in memory, floats in vectors; doubles are converted through floats.
template <FloatVec (*widen)(HalfBits), HalfBits (*narrow)(FloatVec)>
struct HalfElement {
  using Storage = uint16_t;
  static MTLKIT_INLINE FloatVec read(const uint16_t* p, float) {
    HalfBits bits;
    std::memcpy(&bits, p, sizeof bits);
    return widen(bits);
  }
  static MTLKIT_INLINE void write(uint16_t* p, FloatVec v) {
    const HalfBits bits = narrow(v);
    std::memcpy(p, &bits, sizeof bits);
  }
  static MTLKIT_INLINE DoubleVec read(const uint16_t* p, double) {
    HalfBits bits = {};
    std::memcpy(&bits, p, kLanes<double> * sizeof(uint16_t));
    const FloatVec wide = widen(bits);
    DoubleVec v;
    for (int i = 0; i < kLanes<double>; ++i) v[i] = wide[i];
    return v;
  }
  static MTLKIT_INLINE void write(uint16_t* p, DoubleVec v) {
    FloatVec wide = {};
    for (int i = 0; i < kLanes<double>; ++i) wide[i] = static_cast<float>(v[i]);
    const HalfBits bits = narrow(wide);
    std::memcpy(p, &bits, kLanes<double> * sizeof(uint16_t));
  }
};
template <>
struct Element<DType::kBFloat16> : HalfElement<from_bfloat16, to_bfloat16> {};
template <>
struct Element<DType::kFloat16> : HalfElement<from_float16, to_float16> {};

// Whether a partial vector is read and written with a mask. Otherwise it goes through an array, and the load has to
// wait for the stores to it.
template <typename T, typename E>
inline constexpr bool kMasked = sizeof(T) == sizeof(float) && sizeof(typename E::Storage) == sizeof(float);

// Reads `count` neighbouring elements, fewer than a vector holds; the other lanes are 0.
template <typename T, typename E>
MTLKIT_INLINE Vec<T> read_some(const typename E::Storage* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (kMasked<T, E>) return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#endif
  typename E::Storage lanes[kLanes<T>] = {};
  std::memcpy(lanes, p, count * sizeof lanes[0]);
  return E::read(lanes, T{});
}

template <typename T, typename E>
MTLKIT_INLINE void write_some(typename E::Storage* p, Vec<T> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (kMasked<T, E>) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#endif
  typename E::Storage lanes[kLanes<T>];
  E::write(lanes, v);
  std::memcpy(p, lanes, count * sizeof lanes[0]);
}

// Calls `f` with the Element type of a dtype.
template <typename F>
MTLKIT_INLINE void with_element(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Element<DType::kFloat32>{});
    case DType::kFloat64:
      return f(Element<DType::kFloat64>{});
    case DType::kBFloat16:
      return f(Element<DType::kBFloat16>{});
    case DType::kFloat16:
      return f(Element<DType::kFloat16>{});
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
