// Vectors of one instruction set, and packs of them.
//
// A pack holds the same value of N rows. Every operation loops over the pack, so that a formula written once, as if for
// scalars, runs N independent chains side by side: that is what hides the latency of the long polynomial chains in
// sigmoid and tanh (one chain at a time costs four times as much).
//
// This file is compiled once per instruction set. Everything is in an unnamed namespace and nothing comes from the C++
// library: a shared inline function would be merged by the linker into one copy, perhaps the one with instructions that
// the machine lacks.
#pragma once
#include <cstdint>

#include "../inline.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(FUSEDRNN_VECTOR_BYTES)
// Given by hand: tests run the shapes of one instruction set with the vectors of another.
#elif defined(__AVX512F__)
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_REGISTERS 32
#elif defined(__AVX2__)
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_REGISTERS 16
#elif defined(__aarch64__)
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_REGISTERS 32
#else
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_REGISTERS 16
#endif

#if defined(__clang__)
#define FUSEDRNN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FUSEDRNN_UNROLL _Pragma("GCC unroll 16")
#endif
#define FUSEDRNN_EACH(i, n) FUSEDRNN_UNROLL for (int i = 0; i < (n); ++i)

namespace fusedrnn {
namespace {

constexpr int kRegisters = FUSEDRNN_REGISTERS;

// V: a vector. U: the same in memory, unaligned. I: integers of the lanes' width.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  static constexpr int lanes = FUSEDRNN_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
};
template <>
struct Simd<double> {
  static constexpr int lanes = FUSEDRNN_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Simd<T>::V;
template <class T>
constexpr int kLanes = Simd<T>::lanes;

template <class T>
FUSEDRNN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::U*>(p);
}
template <class T>
FUSEDRNN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::U*>(p) = v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // not +: that would turn -0 into 0, so the compiler would have to add
}

// The first n lanes, 0 < n < kLanes; the others are read as zero and not written.
template <class T>
FUSEDRNN_INLINE Vec<T> load_first(const T* p, int n) {
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
FUSEDRNN_INLINE void store_first(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// The same for n <= kLanes / 2, and the lower half written whole: half a vector crosses fewer cache lines.
template <class T>
FUSEDRNN_INLINE Vec<T> load_half(const T* p, int n) {
  return load_first(p, n);
}
template <class T>
FUSEDRNN_INLINE void store_half(T* p, Vec<T> v) {
  store_first(p, v, kLanes<T> / 2);
}
#if defined(__AVX512F__)
template <>
FUSEDRNN_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
template <>
FUSEDRNN_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#if FUSEDRNN_VECTOR_BYTES == 64
template <>
FUSEDRNN_INLINE Vec<float> load_half(const float* p, int n) {
  const __m256d low = (__m256d)_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1), p);
  // The masked forms here and below: in the plain ones GCC sees an undefined vector, and warns.
  return (Vec<float>)_mm512_maskz_insertf64x4(__mmask8(-1), _mm512_setzero_pd(), low, 0);
}
template <>
FUSEDRNN_INLINE void store_half(float* p, Vec<float> v) {
  _mm256_storeu_pd(reinterpret_cast<double*>(p), _mm512_maskz_extractf64x4_pd(__mmask8(-1), (__m512d)v, 0));
}
#endif
#elif defined(__AVX2__) && FUSEDRNN_VECTOR_BYTES == 32
FUSEDRNN_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
FUSEDRNN_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes(n));
}
template <>
FUSEDRNN_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
#endif

// x where it is above / below the limit, else the limit; NaN stays NaN. The instructions return their second operand
// where either is NaN.
template <class V, class T>
FUSEDRNN_INLINE V at_least(T limit, V x) {
  return x < limit ? V{} + limit : x;
}
template <class V, class T>
FUSEDRNN_INLINE V at_most(T limit, V x) {
  return x > limit ? V{} + limit : x;
}
#if defined(__AVX512F__) && FUSEDRNN_VECTOR_BYTES == 64
template <>
FUSEDRNN_INLINE Vec<float> at_least(float limit, Vec<float> x) {
  return (Vec<float>)_mm512_maskz_max_ps(__mmask16(-1), _mm512_set1_ps(limit), (__m512)x);
}
template <>
FUSEDRNN_INLINE Vec<float> at_most(float limit, Vec<float> x) {
  return (Vec<float>)_mm512_maskz_min_ps(__mmask16(-1), _mm512_set1_ps(limit), (__m512)x);
}
#elif defined(__AVX2__) && FUSEDRNN_VECTOR_BYTES == 32
template <>
FUSEDRNN_INLINE Vec<float> at_least(float limit, Vec<float> x) {
  return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(limit), (__m256)x);
}
template <>
FUSEDRNN_INLINE Vec<float> at_most(float limit, Vec<float> x) {
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(limit), (__m256)x);
}
#endif

// 1 / b, for finite b > 0, within 2 ulp, and a / b within 1. Division occupies the divider for 16 cycles where an
// estimate and one correction, of 1/b or of the quotient, take three and four pipelined operations.
template <class V>
FUSEDRNN_INLINE V reciprocal(V b) {
  return 1 / b;
}
template <class V>
FUSEDRNN_INLINE V divide(V a, V b) {
  return a / b;
}
#if defined(__AVX512F__)
template <>
FUSEDRNN_INLINE Vec<float> reciprocal(Vec<float> b) {
  // The masked form, since GCC warns of the undefined vector inside the plain one.
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(__mmask16(-1), (__m512)b);
  return r + r * (1.0f - b * r);
}
template <>
FUSEDRNN_INLINE Vec<float> divide(Vec<float> a, Vec<float> b) {
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(__mmask16(-1), (__m512)b);
  const Vec<float> q = a * r;
  return q + r * (a - q * b);
}
#endif

// N vectors of one value: N rows, or N columns, that are worked on side by side.
template <class T, int N>
struct Pack {
  Vec<T> v[N];
};

#define FUSEDRNN_PACK_OPERATOR(op)                                                   \
  template <class T, int N>                                                          \
  FUSEDRNN_INLINE Pack<T, N> operator op(const Pack<T, N>& a, const Pack<T, N>& b) { \
    Pack<T, N> y;                                                                    \
    FUSEDRNN_EACH(i, N) y.v[i] = a.v[i] op b.v[i];                                   \
    return y;                                                                        \
  }                                                                                  \
  template <class T, int N>                                                          \
  FUSEDRNN_INLINE Pack<T, N> operator op(T a, const Pack<T, N>& b) {                 \
    Pack<T, N> y;                                                                    \
    FUSEDRNN_EACH(i, N) y.v[i] = a op b.v[i];                                        \
    return y;                                                                        \
  }                                                                                  \
  template <class T, int N>                                                          \
  FUSEDRNN_INLINE Pack<T, N> operator op(int a, const Pack<T, N>& b) {               \
    return T(a) op b;                                                                \
  }
FUSEDRNN_PACK_OPERATOR(+)
FUSEDRNN_PACK_OPERATOR(-)
FUSEDRNN_PACK_OPERATOR(*)
#undef FUSEDRNN_PACK_OPERATOR

// max(x, 0) that keeps NaN, as torch.relu does.
template <class T, int N>
FUSEDRNN_INLINE Pack<T, N> relu(const Pack<T, N>& x) {
  Pack<T, N> y;
  FUSEDRNN_EACH(i, N) y.v[i] = x.v[i] < T(0) ? Vec<T>{} : x.v[i];
  return y;
}

// v where y > 0 or y is NaN, else 0: the gradient of relu, as torch defines it.
template <class T, int N>
FUSEDRNN_INLINE Pack<T, N> where_positive(const Pack<T, N>& y, const Pack<T, N>& v) {
  Pack<T, N> z;
  FUSEDRNN_EACH(i, N) z.v[i] = y.v[i] <= T(0) ? Vec<T>{} : v.v[i];
  return z;
}

}  // namespace
}  // namespace fusedrnn
