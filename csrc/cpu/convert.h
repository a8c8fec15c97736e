// Values in the types that tensors are stored in, as vectors of the type that kernels compute in.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace fusedrnn {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int kHalfLanes = kLanes<float>;
typedef uint32_t WideBits __attribute__((vector_size(4 * kHalfLanes)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * kHalfLanes)));
typedef uint16_t HalfMemory __attribute__((vector_size(2 * kHalfLanes), aligned(2), may_alias));

FUSEDRNN_INLINE WideBits select(WideBits mask, WideBits a, WideBits b) { return (a & mask) | (b & ~mask); }

FUSEDRNN_INLINE Vec<float> widen(HalfBits h, BFloat16) {
  return (Vec<float>)(__builtin_convertvector(h, WideBits) << 16);
}

FUSEDRNN_INLINE HalfBits narrow(Vec<float> v, BFloat16) {
  const WideBits u = (WideBits)v;
  const WideBits rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  const WideBits nan = (u >> 16) | 0x40;
  return __builtin_convertvector(select((WideBits)((u & 0x7fffffff) > 0x7f800000), nan, rounded), HalfBits);
}

#if defined(__AVX512F__) && FUSEDRNN_VECTOR_BYTES == 64
FUSEDRNN_INLINE Vec<float> widen(HalfBits h, Float16) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)h);
}
FUSEDRNN_INLINE HalfBits narrow(Vec<float> v, Float16) {
  return (HalfBits)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__) && FUSEDRNN_VECTOR_BYTES == 32
FUSEDRNN_INLINE Vec<float> widen(HalfBits h, Float16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
FUSEDRNN_INLINE HalfBits narrow(Vec<float> v, Float16) {
  return (HalfBits)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#else
// The exponent is moved by a product, which is exact and turns subnormal numbers into normal ones.
FUSEDRNN_INLINE Vec<float> widen(HalfBits h, Float16) {
  const WideBits w = __builtin_convertvector(h, WideBits), u = w & 0x7fff, sign = (w & 0x8000) << 16;
  const WideBits finite = (WideBits)((Vec<float>)(u << 13) * 0x1p112f), other = (u << 13) | 0x7f800000;
  return (Vec<float>)(select((WideBits)(u >= 0x7c00), other, finite) | sign);
}
FUSEDRNN_INLINE HalfBits narrow(Vec<float> v, Float16) {
  const WideBits w = (WideBits)v, u = w & 0x7fffffff, sign = (w >> 16) & 0x8000;
  // Adding 1/2 leaves the bits of a subnormal result, rounded, at the end of the sum.
  const WideBits subnormal = (WideBits)((Vec<float>)u + 0.5f) - 0x3f000000;
  const WideBits normal = (u - (112 << 23) + 0xfff + ((u >> 13) & 1)) >> 13;
  const WideBits large = select((WideBits)(u > 0x7f800000), WideBits{} + 0x7e00, WideBits{} + 0x7c00);
  const WideBits finite = select((WideBits)(u < 0x38800000), subnormal, normal);
  return __builtin_convertvector(select((WideBits)(u >= 0x47800000), large, finite) | sign, HalfBits);
}
#endif

template <class T>
FUSEDRNN_INLINE Vec<T> load_up_to(const T* p, int64_t n) {
  return n >= kLanes<T> ? load(p) : n > 0 ? load_first(p, int(n)) : Vec<T>{};
}
template <class T>
FUSEDRNN_INLINE void store_up_to(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>)
    store(p, v);
  else if (n > 0)
    store_first(p, v, int(n));
}

// The first n values, or all lanes if there are more; the other lanes are zero.
template <class T, class S>
FUSEDRNN_INLINE Vec<T> load_as(const S* p, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load_up_to(p, n);
  } else {
    HalfBits h = {};
    if (n >= kHalfLanes)
      h = *reinterpret_cast<const HalfMemory*>(p);
    else
      for (int i = 0; i < n; ++i) h[i] = p[i].bits;
    return widen(h, S{});
  }
}

template <class T, class S>
FUSEDRNN_INLINE void store_as(S* p, Vec<T> v, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store_up_to(p, v, n);
  } else {
    const HalfBits h = narrow(v, S{});
    if (n >= kHalfLanes)
      *reinterpret_cast<HalfMemory*>(p) = h;
    else
      for (int i = 0; i < n; ++i) p[i].bits = h[i];
  }
}

// f(S{}) with the type that tensors are stored in.
template <class T, class F>
FUSEDRNN_INLINE void with_type(cpu::Type type, const F& f) {
  if constexpr (sizeof(T) == 4) {
    if (type == cpu::kBFloat16) return f(BFloat16{});
    if (type == cpu::kFloat16) return f(Float16{});
  }
  f(T{});
}

}  // namespace
}  // namespace fusedrnn
