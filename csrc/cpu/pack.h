// Weights in PyTorch's layout to panels (tile.h). Runs once per call, so its cost counts at short sequences.
#pragma once
#include "kernels.h"
#include "simd.h"
#include "tile.h"

namespace fusedrnn {
namespace {

#if defined(__clang__) || __GNUC__ >= 12
template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountLanes : CountLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountLanes<0, I...> {
  typedef Lanes<I...> type;
};

// Exchanges blocks of S lanes between a and b: one stage of a transposition.
template <class T, int S, int... I>
FUSEDRNN_INLINE void exchange(Vec<T>& a, Vec<T>& b, Lanes<I...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
  a = low;
  b = high;
}

template <class T, int S = 1>
FUSEDRNN_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (S < L) {
    FUSEDRNN_EACH(i, L) if (!(i & S)) exchange<T, S>(m[i], m[i + S], typename CountLanes<L>::type{});
    transpose<T, 2 * S>(m);
  }
}
#else
template <class T>
FUSEDRNN_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < i; ++j) {
      const T x = m[i][j];
      m[i][j] = m[j][i];
      m[j][i] = x;
    }
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

// Panel `tile` of w[G * H][K], rows ldw apart, for x w^T: w[g * H + unit][k] goes to stream g / W, at [k][g % W][lane].
template <class T, int G>
static void pack_rows(const T* w, int64_t H, int64_t ldw, int64_t K, int64_t tile, T* panel) {
  constexpr int L = kLanes<T>, W = kWidth<G>;
  const int64_t unit = tile * L, valid = H - unit;
  for (int64_t g = 0; g < G; ++g)
    for (int64_t k = 0; k < K; k += L) {
      Vec<T> m[L];
      const T* from = w + (g * H + unit) * ldw + k;
      FUSEDRNN_EACH(i, L) m[i] = i < valid ? load_up_to(from + i * ldw, K - k) : Vec<T>{};
      transpose<T>(m);
      T* to = panel + (g / W * K + k) * W * L + g % W * L;
      if (K - k >= L) {
        FUSEDRNN_EACH(i, L) store(to + i * W * L, m[i]);
      } else {
        for (int i = 0; i < K - k; ++i) store(to + i * W * L, m[i]);
      }
    }
}

// Panel `tile` of w[K][H], rows ldw apart, for x w: panel[k][lane] = w[k][unit].
template <class T>
static void pack_columns(const T* w, int64_t ldw, int64_t H, int64_t K, int64_t tile, T* panel) {
  constexpr int L = kLanes<T>;
  const int64_t unit = tile * L;
  for (int64_t k = 0; k < K; ++k) store(panel + k * L, load_up_to(w + k * ldw + unit, H - unit));
}

// bias[G * H], or null for zeros, as [tile][g][lane].
template <class T>
static void pack_bias(const T* bias, int64_t G, int64_t H, int64_t tile, T* packed) {
  constexpr int L = kLanes<T>;
  const int64_t unit = tile * L;
  for (int64_t g = 0; g < G; ++g)
    store(packed + (tile * G + g) * L, bias ? load_up_to(bias + g * H + unit, H - unit) : Vec<T>{});
}

// f(tile) for every panel.
template <class F>
static void for_each_panel(int64_t tiles, bool parallel, const cpu::Runner& runner, const F& f) {
  if (!parallel) {
    for (int64_t t = 0; t < tiles; ++t) f(t);
    return;
  }
  runner.run(
      tiles,
      [](void* p, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) (*static_cast<const F*>(p))(t);
      },
      const_cast<F*>(&f));
}

}  // namespace
}  // namespace fusedrnn
