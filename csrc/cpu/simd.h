// Vectors of the instruction set that this file is compiled for, and functions on them.
//
// Arithmetic uses the vector types of GCC and Clang, so one source compiles for SSE2, AVX2, AVX-512 and NEON;
// intrinsics are used only where they beat portable code. Everything is in the namespace of its level, so that levels
// never share an inline function.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "common/tensor.h"

#define MTLKIT_INLINE inline __attribute__((always_inline))

namespace mtlkit {
namespace MTLKIT_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

typedef float FloatVec __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVec __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UintVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = FloatVec;
};
template <>
struct VecOf<double> {
  using type = DoubleVec;
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
inline constexpr T kLog2E = static_cast<T>(1.442695040888963407359924681);
template <typename T>
inline constexpr T kLn2 = static_cast<T>(0.693147180559945309417232121);

template <typename T>
MTLKIT_INLINE Vec<T> load(const T* address) {
  Vec<T> v;
  std::memcpy(&v, address, sizeof v);
  return v;
}

template <typename T>
MTLKIT_INLINE void store(T* address, Vec<T> v) {
  std::memcpy(address, &v, sizeof v);
}

template <typename T>
MTLKIT_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};  // exact, and compiles to a broadcast; adding to 0 would turn -0 into 0
}

// Returns NaN if b is NaN; if only a is NaN, returns b.
MTLKIT_INLINE FloatVec max(FloatVec a, FloatVec b) {
#if defined(__AVX512F__)  // a conditional expression would be two instructions
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
MTLKIT_INLINE DoubleVec max(DoubleVec a, DoubleVec b) { return a > b ? a : b; }
MTLKIT_INLINE FloatVec abs(FloatVec a) { return reinterpret_cast<FloatVec>(reinterpret_cast<IntVec>(a) & 0x7fffffff); }
MTLKIT_INLINE DoubleVec abs(DoubleVec a) { return a < 0 ? -a : a; }

// ---- masks -------------------------------------------------------------------------------------------------------

template <typename T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

template <typename T>
MTLKIT_INLINE Vec<T> keep(Vec<T> v, Mask<T> mask) {
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Mask<T>>(v) & mask);
}

// Bit i of the result is the mask of lane i.
template <typename T>
MTLKIT_INLINE uint16_t bits_of(Mask<T> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(reinterpret_cast<__m256>(mask));
  if constexpr (sizeof(T) == 8) return _mm256_movemask_pd(reinterpret_cast<__m256d>(mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return _mm_movemask_ps(reinterpret_cast<__m128>(mask));
  if constexpr (sizeof(T) == 8) return _mm_movemask_pd(reinterpret_cast<__m128d>(mask));
#else
  uint16_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= mask[i] ? 1 << i : 0;
  return bits;
#endif
}

template <typename T>
MTLKIT_INLINE bool all_of(Mask<T> mask) {
  return bits_of<T>(mask) == (1 << kLanes<T>)-1;
}

template <typename T>
MTLKIT_INLINE Mask<T> mask_of(uint16_t bits) {
  Mask<T> lane{};
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = 1 << i;
  return (lane & bits) != 0;
}

// ---- exponentials and logarithms ---------------------------------------------------------------------------------

// 2^x with a relative error of 1e-7, exact at 0, correct limits at both ends; keeps NaN. Levels below AVX-512 return 0
// for results below 2^-126.
MTLKIT_INLINE FloatVec exp2(FloatVec x) {
#if defined(__AVX512F__)
  const FloatVec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);
#else
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const FloatVec clamped = x > 128.f ? splat(128.f) : x;
  const FloatVec rounded = clamped + kRound;
  const FloatVec f = clamped - (rounded - kRound);
#endif
  FloatVec p = splat(1.3264727490e-03f);
  p = p * f + 9.6715126418e-03f;
  p = p * f + 5.5507337423e-02f;
  p = p * f + 2.4022242085e-01f;
  p = p * f + 6.9314697760e-01f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const UintVec bits = reinterpret_cast<UintVec>(p) + (reinterpret_cast<UintVec>(rounded) << 23);
  return x >= -126.f ? reinterpret_cast<FloatVec>(bits) : max(FloatVec{}, x);  // adding bits may turn NaN into a number
#endif
}

// 2^x for |x| <= kNearExponent, with a relative error of 1.9e-7, exact at 0; keeps NaN. The power of two of the nearest
// 16th comes from a table in a register; adding the index to the bits of an entry sets the exponent, and the entries
// compensate for the index's low bits. A polynomial of degree 3 does the rest; its leading factor is in the table, too.
// With degree 2, even with a larger table, 1 - 2^x of slowly decaying states would be off by 1e-5, always in the same
// direction.
inline constexpr int kNearExponent = 120;

MTLKIT_INLINE FloatVec exp2_near(FloatVec x) {
#if defined(__AVX512F__)
  constexpr int kBits = 4;
  constexpr float kRound = 1.5f * (1 << (23 - kBits));
  constexpr float kShift = 1.4375f;  // shifted by about 1 / ln(2), the polynomial needs no term of degree 2
  const IntVec powers = {0x3d642d51, 0x3d66477f, 0x3d68d42c, 0x3d69ec36, 0x3d67acc4, 0x3d65ae84,
                         0x3d63f45a, 0x3d628147, 0x3d615874, 0x3d607d28, 0x3d5ff2d3, 0x3d5fbd0a,
                         0x3d5fdf8c, 0x3d605e42, 0x3d613d3f, 0x3d6280c9};
  asm("" : "+v"(x));  // not to be fused with the subtraction of f: the ports of multiply-adds are the scarce ones
  const FloatVec rounded = x + kRound, f = x - (rounded - (kRound + kShift));
  const IntVec index = reinterpret_cast<IntVec>(rounded);
  const IntVec power = reinterpret_cast<IntVec>(
      _mm512_permutexvar_epi32(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512i>(powers)));
  const FloatVec p = (f * f + 6.24344492f) * f + 6.00556421f;
  return reinterpret_cast<FloatVec>(power + (index << (23 - kBits))) * p;
#elif defined(__AVX2__)
  constexpr int kBits = 3;
  constexpr float kRound = 1.5f * (1 << (23 - kBits));
  const IntVec powers = {0x3d635d8c, 0x3d67f199, 0x3d67313a, 0x3d636da1,
                         0x3d60c589, 0x3d5f529d, 0x3d5f30d6, 0x3d607eb9};
  const FloatVec rounded = x + kRound, f = x - (rounded - kRound);
  const IntVec index = reinterpret_cast<IntVec>(rounded);
  const IntVec power = reinterpret_cast<IntVec>(
      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(powers), reinterpret_cast<__m256i>(index)));
  const FloatVec p = ((f + 4.3281867f) * f + 12.487083f) * f + 18.0150528f;
  return reinterpret_cast<FloatVec>(power + (index << (23 - kBits))) * p;
#else
  return exp2(x);
#endif
}

// Doubles are for verification, not speed: this calls the library's function lane by lane.
MTLKIT_INLINE DoubleVec exp2(DoubleVec x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp2(x[i]);
  return x;
}

MTLKIT_INLINE DoubleVec exp2_near(DoubleVec x) { return exp2(x); }

// 2^x; with `near`, all lanes must satisfy |x| <= kNearExponent.
template <bool near, typename V>
MTLKIT_INLINE V exp2_if(V x) {
  if constexpr (near) return exp2_near(x);
  return exp2(x);
}

// log(1 + exp(x)) of `count` vectors, whose dependency chains hide each other's latency; for x >= 20 the result is x to
// the last bit. `slope`, if given, receives the derivatives 1 / (1 + exp(-x)).
template <int count = 1>
MTLKIT_INLINE void softplus(FloatVec* x, FloatVec* slope = nullptr) {
  // log(1 + e) / e with a relative error of 4e-8 for e <= 1, and of 1e-8 for e <= 1/4, as time steps mostly are.
  constexpr float kAny[] = {5.3648225463e-03f,  -3.0065785905e-02f, 7.9204526761e-02f,
                            -1.3753801762e-01f, 1.9153654764e-01f,  -2.4857163652e-01f,
                            3.3321322621e-01f,  -4.9999647964e-01f, 1.0f};
  constexpr float kSmall[] = {-9.3316314e-02f, 1.8237039e-01f, -2.4794496e-01f, 3.3322590e-01f, -4.9999815e-01f, 1.0f};
  constexpr uint32_t kFrom = 0x3fb20000, kTo = 0x42a60000;  // bits of 1.39 > ln(4) and of 83 < 120 ln(2)
  UintVec smallest = reinterpret_cast<UintVec>(abs(x[0])), largest = smallest;
  for (int i = 1; i < count; ++i) {
    const UintVec bits = reinterpret_cast<UintVec>(abs(x[i]));
    smallest = bits < smallest ? bits : smallest;
    largest = bits > largest ? bits : largest;
  }
  const auto compute = [&](auto near, const auto& coefficients) __attribute__((always_inline)) {
    FloatVec e[count], p[count];
    for (int i = 0; i < count; ++i) e[i] = exp2_if<decltype(near)::value>(abs(x[i]) * -kLog2E<float>);
    if (slope) {
      for (int i = 0; i < count; ++i) slope[i] = (x[i] > 0 ? splat(1.0f) : e[i]) / (1.0f + e[i]);
    }
    for (int i = 0; i < count; ++i) p[i] = splat(coefficients[0]);
    for (size_t k = 1; k < std::size(coefficients); ++k) {
      for (int i = 0; i < count; ++i) p[i] = p[i] * e[i] + coefficients[k];
    }
    for (int i = 0; i < count; ++i) x[i] = max(FloatVec{}, x[i]) + p[i] * e[i];
  };
  if (!all_of<float>(largest <= kTo)) {
    compute(std::false_type{}, kAny);
  } else if (all_of<float>(smallest >= kFrom)) {
    compute(std::true_type{}, kSmall);
  } else {
    compute(std::true_type{}, kAny);
  }
}

template <int count = 1>
MTLKIT_INLINE void softplus(DoubleVec* x, DoubleVec* slope = nullptr) {
  for (int v = 0; v < count; ++v) {
    for (int i = 0; i < kLanes<double>; ++i) {
      if (slope) slope[v][i] = x[v][i] > 20 ? 1 : 1 / (1 + ::exp(-x[v][i]));
      x[v][i] = x[v][i] > 20 ? x[v][i] : ::log1p(::exp(x[v][i]));
    }
  }
}

template <typename V>
MTLKIT_INLINE V softplus(V x) {
  softplus<1>(&x);
  return x;
}

// 1 / (1 + exp(-x)).
MTLKIT_INLINE FloatVec sigmoid(FloatVec x) { return 1.0f / (1.0f + exp2(x * -kLog2E<float>)); }

MTLKIT_INLINE DoubleVec sigmoid(DoubleVec x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = 1 / (1 + ::exp(-x[i]));
  return x;
}

// Picks lanes of two vectors by compile-time indices; indices from the lane count upwards refer to the second vector.
#if defined(__clang__) || __GNUC__ >= 12
#define MTLKIT_SHUFFLE(a, b, index) __builtin_shufflevector(a, b, index...)
#else
#define MTLKIT_SHUFFLE(a, b, index) __builtin_shuffle(a, b, decltype((a) < (b)){index...})
#endif

enum class Pick { kLow, kHigh, kBlend, kSwap, kEven, kOdd };

// The source of lane `lane`, with a and b divided into runs of 2 * run lanes: kLow takes a's first half, then b's first
// half; kHigh the second halves; kBlend keeps a's first and b's second half in place; kSwap takes a's second half, then
// b's first. kEven and kOdd divide into runs of 4 * run lanes: they take the first, or the second, half of each
// half, a's before b's.
constexpr int lane_index(Pick pick, int run, int lanes, int lane) {
  const bool second = lane % (2 * run) >= run;
  if (pick == Pick::kEven || pick == Pick::kOdd) {
    const int within = lane % (4 * run), from = lane - within + within % run + 2 * (within / run % 2) * run;
    return (within < 2 * run ? 0 : lanes) + from + (pick == Pick::kOdd ? run : 0);
  }
  switch (pick) {
    case Pick::kLow:
      return second ? lanes + lane - run : lane;
    case Pick::kHigh:
      return second ? lanes + lane : lane + run;
    case Pick::kBlend:
      return second ? lanes + lane : lane;
    default:
      return second ? lanes + lane - run : lane + run;
  }
}

template <Pick pick, int run, typename V, int... lane>
MTLKIT_INLINE V pick_lanes(V a, V b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = sizeof...(lane);
  return MTLKIT_SHUFFLE(a, b, lane_index(pick, run, lanes, lane));
}

template <typename T, Pick pick, int run>
MTLKIT_INLINE Vec<T> pick_lanes(Vec<T> a, Vec<T> b) {
  return pick_lanes<pick, run>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

// Transposes v in place: swaps lane i of v[j] with lane j of v[i].
template <typename T, int run = kLanes<T> / 2>
MTLKIT_INLINE void transpose(Vec<T>* v) {
  for (int block = 0; block < kLanes<T>; block += 2 * run) {
    for (int i = block; i < block + run; ++i) {
      const Vec<T> low = pick_lanes<T, Pick::kLow, run>(v[i], v[i + run]);
      v[i + run] = pick_lanes<T, Pick::kHigh, run>(v[i], v[i + run]);
      v[i] = low;
    }
  }
  if constexpr (run > 1) transpose<T, run / 2>(v);
}

// A vector whose lane i is the sum of the lanes of v[i]; overwrites v. The order of the additions is fixed.
template <typename T, int run = kLanes<T> / 2>
MTLKIT_INLINE Vec<T> sum_lanes(Vec<T>* v) {
  for (int i = 0; i < run; ++i) {
    v[i] = pick_lanes<T, Pick::kBlend, run>(v[i], v[i + run]) + pick_lanes<T, Pick::kSwap, run>(v[i], v[i + run]);
  }
  if constexpr (run > 1) {
    return sum_lanes<T, run / 2>(v);
  } else {
    return v[0];
  }
}

// ---- 16-bit formats, kept as bits --------------------------------------------------------------------------------

MTLKIT_INLINE FloatVec from_bfloat16(HalfBits bits) {
  return reinterpret_cast<FloatVec>(__builtin_convertvector(bits, UintVec) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
MTLKIT_INLINE HalfBits to_bfloat16(FloatVec v) {
  const UintVec bits = reinterpret_cast<UintVec>(v);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(v == v ? rounded : UintVec{} + 0x7fc0u, HalfBits);
}

#if defined(__AVX512F__)
MTLKIT_INLINE FloatVec from_float16(HalfBits bits) { return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits)); }
MTLKIT_INLINE HalfBits to_float16(FloatVec v) {
  return reinterpret_cast<HalfBits>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
MTLKIT_INLINE FloatVec from_float16(HalfBits bits) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits)); }
MTLKIT_INLINE HalfBits to_float16(FloatVec v) {
  return reinterpret_cast<HalfBits>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Widens by a multiplication with the difference of the exponent biases, which is exact for subnormals, too.
MTLKIT_INLINE FloatVec from_float16(HalfBits half) {
  const UintVec bits = __builtin_convertvector(half, UintVec);
  const UintVec sign = (bits & 0x8000u) << 16;
  const UintVec magnitude = (bits & 0x7fffu) << 13;
  const FloatVec value = reinterpret_cast<FloatVec>(magnitude) * 0x1p112f;
  const UintVec special = magnitude | 0x7f800000u;
  return reinterpret_cast<FloatVec>(sign | ((bits & 0x7c00u) == 0x7c00u ? special : reinterpret_cast<UintVec>(value)));
}

// Rounds to nearest, ties to even: subnormals by adding a constant in floating point, normal numbers in the integer
// bits.
MTLKIT_INLINE HalfBits to_float16(FloatVec v) {
  const UintVec bits = reinterpret_cast<UintVec>(v);
  const UintVec sign = (bits >> 16) & 0x8000u;
  const UintVec magnitude = bits & 0x7fffffffu;
  const UintVec subnormal = reinterpret_cast<UintVec>(reinterpret_cast<FloatVec>(magnitude) + 0.5f) - 0x3f000000u;
  const UintVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  UintVec result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? UintVec{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? UintVec{} + 0x7e00u : result;
  return __builtin_convertvector(result | sign, HalfBits);
}
#endif

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
