// Runs the AVX-512 kernels on a CPU without AVX-512, slowly: see tests/variants.py. The compiler includes this file
// before every source. Those that it compiles for AVX2 then take the code for AVX-512, with vectors of 64 bytes, which
// the compiler splits, and with the functions below in place of intrinsics. The results are those of the instructions,
// except that scalef does not return NaN if only its exponent is NaN.
#pragma once

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define asm(...)  // no register can hold the operands that some of them name

namespace emulated {

constexpr int kFloats = 16;

inline __m512 max(__m512 a, __m512 b) {
  for (int i = 0; i < kFloats; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}

inline __m512 roundscale(__m512 x, int) {
  for (int i = 0; i < kFloats; ++i) x[i] = std::nearbyint(x[i]);
  return x;
}

inline __m512 reduce(__m512 x, int) {
  for (int i = 0; i < kFloats; ++i) x[i] = std::isinf(x[i]) ? 0 : x[i] - std::nearbyint(x[i]);
  return x;
}

inline __m512 scalef(__m512 x, __m512 exponent) {
  constexpr float kLarge = 1000;
  for (int i = 0; i < kFloats; ++i) {
    x[i] = std::ldexp(x[i], static_cast<int>(std::fmax(-kLarge, std::fmin(kLarge, std::floor(exponent[i])))));
  }
  return x;
}

inline __m512i permute(__m512i index, __m512i from) {
  uint32_t to[kFloats], table[kFloats];
  std::memcpy(to, &index, sizeof to);
  std::memcpy(table, &from, sizeof table);
  for (uint32_t& lane : to) lane = table[lane % kFloats];
  std::memcpy(&index, to, sizeof to);
  return index;
}

template <typename T>
uint16_t signs(__m512i v) {
  T lanes[sizeof v / sizeof(T)];
  std::memcpy(lanes, &v, sizeof v);
  uint16_t bits = 0;
  for (unsigned i = 0; i < sizeof v / sizeof(T); ++i) bits |= lanes[i] < 0 ? 1 << i : 0;
  return bits;
}

inline __m512 load(uint16_t mask, const float* from) {
  __m512 v{};
  for (int i = 0; i < kFloats; ++i) {
    if (mask >> i & 1) v[i] = from[i];
  }
  return v;
}

inline void store(float* to, uint16_t mask, __m512 v) {
  for (int i = 0; i < kFloats; ++i) {
    if (mask >> i & 1) to[i] = v[i];
  }
}

inline void stream(__m512i* to, __m512i v) { std::memcpy(to, &v, sizeof v); }

inline __m512 from_half(__m256i bits) {
  __m128i halves[2];
  std::memcpy(halves, &bits, sizeof bits);
  const __m256 parts[] = {_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])};
  __m512 v;
  std::memcpy(&v, parts, sizeof v);
  return v;
}

inline __m256i to_half(__m512 v, int) {
  __m256 parts[2];
  std::memcpy(parts, &v, sizeof v);
  const __m128i halves[] = {_mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT)};
  __m256i bits;
  std::memcpy(&bits, halves, sizeof bits);
  return bits;
}

}  // namespace emulated

// those with an immediate operand are macros in Clang's header
#undef _mm512_roundscale_ps
#undef _mm512_reduce_ps
#undef _mm512_cvtps_ph

#define _mm512_max_ps ::emulated::max
#define _mm512_roundscale_ps ::emulated::roundscale
#define _mm512_reduce_ps ::emulated::reduce
#define _mm512_scalef_ps ::emulated::scalef
#define _mm512_permutexvar_epi32 ::emulated::permute
#define _mm512_movepi32_mask ::emulated::signs<int32_t>
#define _mm512_movepi64_mask ::emulated::signs<int64_t>
#define _mm512_maskz_loadu_ps ::emulated::load
#define _mm512_mask_storeu_ps ::emulated::store
#define _mm512_stream_si512 ::emulated::stream
#define _mm512_cvtph_ps ::emulated::from_half
#define _mm512_cvtps_ph ::emulated::to_half
#endif
