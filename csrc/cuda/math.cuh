// The scalars of kernels: what they are computed in, and the functions of them that cells call.
#pragma once
#include "compat.cuh"

namespace fusedrnn {

// The half types are stored only; all arithmetic on them is in float.
template <class T>
struct ComputeOf {
  using Type = T;
};
template <>
struct ComputeOf<__half> {
  using Type = float;
};
template <>
struct ComputeOf<__nv_bfloat16> {
  using Type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

FUSEDRNN_DEVICE float to_compute(float v) { return v; }
FUSEDRNN_DEVICE double to_compute(double v) { return v; }
FUSEDRNN_DEVICE float to_compute(__half v) { return __half2float(v); }
FUSEDRNN_DEVICE float to_compute(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
FUSEDRNN_DEVICE T from_compute(Compute<T> v) {
  return v;
}
template <>
FUSEDRNN_DEVICE __half from_compute<__half>(float v) {
  return __float2half_rn(v);
}
template <>
FUSEDRNN_DEVICE __nv_bfloat16 from_compute<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// The exponential is of the negative side only: it cannot overflow, and small results keep their digits.
FUSEDRNN_INLINE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}
FUSEDRNN_INLINE double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x < 0 ? e : 1.0) / (1.0 + e);
}

FUSEDRNN_INLINE float tanh(float x) { return tanhf(x); }
FUSEDRNN_INLINE double tanh(double x) { return ::tanh(x); }

// NaN stays NaN.
FUSEDRNN_INLINE float relu(float x) { return x < 0 ? 0.0f : x; }
FUSEDRNN_INLINE double relu(double x) { return x < 0 ? 0.0 : x; }

// x where y > 0 or y is NaN, else zero: the gradient of relu, as torch defines it.
FUSEDRNN_INLINE float where_positive(float y, float x) { return y <= 0 ? 0.0f : x; }
FUSEDRNN_INLINE double where_positive(double y, double x) { return y <= 0 ? 0.0 : x; }

}  // namespace fusedrnn
