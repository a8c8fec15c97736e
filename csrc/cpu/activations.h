// sigmoid and tanh of packs, within 3 ulp of float64, exact at +-inf, NaN in NaN out.
//
// Both rest on e^x = 2^n e^r with n = round(x / ln 2) and e^r = 1 + r + r^2 p(r), p a polynomial in r = x - n ln 2
// (Cody and Waite 1980: ln 2 in two parts, so that r is exact). Clamps are written so that a comparison with NaN, being
// false, keeps the NaN.
#pragma once
#include "simd.h"

namespace fusedrnn {
namespace {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147182f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -104.5f;       // sigmoid is 0 below
  static constexpr float kSigmoidLimit = 30.0f;   // and 1 above
  static constexpr float kTanhLimit = 9.5f;       // tanh is 1 above
  static constexpr int kDown = 24;
  static constexpr float kOneDown = 0x1p-24f;
  static constexpr int32_t kBias = 127, kMantissa = 23;
  // p on |r| <= ln 2 / 2, highest power first: the relative error of e^r is at most 3.1e-9, least in the maximum.
  static constexpr float kPoly[] = {1.38145406e-3f, 8.36874545e-3f, 4.16683890e-2f, 1.66665211e-1f, 4.99999940e-1f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453, kLn2High = 6.93145751953125e-1,
                          kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -746.0;
  static constexpr double kSigmoidLimit = 40.0;
  static constexpr int kDown = 54;
  static constexpr double kOneDown = 0x1p-54;
  static constexpr double kTanhLimit = 20.0;
  static constexpr int64_t kBias = 1023, kMantissa = 52;
  // 1/13! ... 1/2!: the Taylor series ends below 2^-57 on |r| <= ln 2 / 2
  static constexpr double kPoly[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
                                     1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
                                     1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        0.5};
};

// n = round(x scale / ln 2), as the vector whose integer bits, less those of kRounder, are n; and as a number.
template <class T, int N>
FUSEDRNN_INLINE void round_to_power(const Pack<T, N>& x, T scale, Pack<T, N>& shifted, Pack<T, N>& n) {
  using C = ExpConstants<T>;
  FUSEDRNN_EACH(i, N) shifted.v[i] = x.v[i] * (scale * C::kLog2e) + C::kRounder;
  FUSEDRNN_EACH(i, N) n.v[i] = shifted.v[i] - C::kRounder;
}

// The polynomial of scale r, times scale^factors.
template <int kFactors, class T, int N>
FUSEDRNN_INLINE Pack<T, N> polynomial(const Pack<T, N>& r, T scale) {
  using C = ExpConstants<T>;
  constexpr int terms = sizeof(C::kPoly) / sizeof(T);
  const auto coefficient = [&](int k) {
    T c = C::kPoly[k];
    for (int power = terms - 1 - k + kFactors; power > 0; --power) c *= scale;
    return c;
  };
  Pack<T, N> p;
  FUSEDRNN_EACH(i, N) p.v[i] = r.v[i] * coefficient(0) + coefficient(1);
  FUSEDRNN_EACH(k, terms - 2) FUSEDRNN_EACH(i, N) p.v[i] = p.v[i] * r.v[i] + coefficient(k + 2);
  return p;
}

// 2^(n + shift) for a normal result, from the vector whose low bits are n: shifted to the place of the exponent, they
// push the bits of kRounder out.
template <class T>
FUSEDRNN_INLINE Vec<T> power_of_two(Vec<T> shifted, int shift) {
  using C = ExpConstants<T>;
  using I = typename Simd<T>::I;
  return (Vec<T>)(((I)shifted << C::kMantissa) + ((C::kBias + shift) << C::kMantissa));
}

// 1 / (1 + e^-x), with both sides of the fraction times 2^-kDown: so e^-x does not overflow where the result is
// subnormal, and small results keep their relative accuracy down to there.
template <class T, int N>
FUSEDRNN_INLINE Pack<T, N> sigmoid(const Pack<T, N>& x) {
  using C = ExpConstants<T>;
  const Vec<T> one = broadcast(C::kOneDown);
  Pack<T, N> a, shifted, n, s, y;
  FUSEDRNN_EACH(i, N) a.v[i] = at_most(C::kSigmoidLimit, x.v[i]);
  FUSEDRNN_EACH(i, N) a.v[i] = -at_least(C::kLowest, a.v[i]);
  round_to_power(a, T(1), shifted, n);
  FUSEDRNN_EACH(i, N) a.v[i] = a.v[i] - n.v[i] * C::kLn2High;
  FUSEDRNN_EACH(i, N) a.v[i] = a.v[i] - n.v[i] * C::kLn2Low;
  Pack<T, N> e = polynomial<0>(a, T(1));
  FUSEDRNN_EACH(i, N) e.v[i] = e.v[i] * a.v[i] + T(1);
  FUSEDRNN_EACH(i, N) e.v[i] = e.v[i] * a.v[i] + T(1);
  FUSEDRNN_EACH(i, N) s.v[i] = power_of_two<T>(shifted.v[i], -C::kDown);
  FUSEDRNN_EACH(i, N) y.v[i] = e.v[i] * s.v[i] + one;
  FUSEDRNN_EACH(i, N) y.v[i] = reciprocal(y.v[i]);
  FUSEDRNN_EACH(i, N) y.v[i] = y.v[i] * one;
  return y;
}

// h / (h + 1) with h = (e^2x - 1) / 2, which loses nothing near 0. r is that of x, so half of that of 2x; where n is so
// large that ln 2 in one part is not exact enough for e^2x, it is for the result.
template <class T, int N>
FUSEDRNN_INLINE Pack<T, N> tanh(const Pack<T, N>& x) {
  using C = ExpConstants<T>;
  Pack<T, N> r, shifted, n, s, h, y;
  FUSEDRNN_EACH(i, N) r.v[i] = at_most(C::kTanhLimit, x.v[i]);
  FUSEDRNN_EACH(i, N) r.v[i] = at_least(-C::kTanhLimit, r.v[i]);
  round_to_power(r, T(2), shifted, n);
  FUSEDRNN_EACH(i, N) r.v[i] = r.v[i] - n.v[i] * (C::kLn2 / 2);
  h = polynomial<1>(r, T(2));
  FUSEDRNN_EACH(i, N) y.v[i] = r.v[i] * r.v[i];
  FUSEDRNN_EACH(i, N) h.v[i] = h.v[i] * y.v[i] + r.v[i];
  FUSEDRNN_EACH(i, N) s.v[i] = power_of_two<T>(shifted.v[i], 0);
  FUSEDRNN_EACH(i, N) h.v[i] = h.v[i] * s.v[i] + (s.v[i] * T(0.5) - T(0.5));
  FUSEDRNN_EACH(i, N) y.v[i] = divide(h.v[i], h.v[i] + T(1));
  return y;
}

}  // namespace
}  // namespace fusedrnn
