// Products of few rows with a factor that is read where it is. Packing a matrix costs as much as some products with one
// row, so a step of generation must do without.
#pragma once
#include "pack.h"
#include "product.h"

namespace fusedrnn {
namespace {

// Rows of weights that are read side by side, and vectors of each: few streams that are read front to back suit the
// prefetchers better than a stream for every lane.
constexpr int kRowsAtATime = 4, kVectorsOfRow = 4;

// The sums of a[K] * w[row][K], lane by lane, of kRowsAtATime rows.
template <class T, class S>
FUSEDRNN_INLINE void multiply_few_rows(const T* a, int64_t K, const S* w, int64_t ldw, Vec<T>* sums) {
  constexpr int L = kLanes<T>, R = kRowsAtATime, N = kVectorsOfRow;
  Vec<T> acc[R][N] = {};
  int64_t k = 0;
  for (; k + N * L <= K; k += N * L) FUSEDRNN_EACH(n, N) {
      const Vec<T> x = load(a + k + n * L);
      FUSEDRNN_EACH(r, R) acc[r][n] += x * load_as<T>(w + r * ldw + k + n * L, L);
    }
  for (; k < K; k += L) {
    const Vec<T> x = load_up_to(a + k, K - k);
    FUSEDRNN_EACH(r, R) acc[r][0] += x * load_as<T>(w + r * ldw + k, K - k);
  }
  FUSEDRNN_EACH(r, R) sums[r] = (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]);
}

// out[lane] = a[K] . w[unit + lane][K], for the first `valid` lanes.
template <class T, class S>
FUSEDRNN_INLINE Vec<T> dot_products(const T* a, int64_t K, const S* w, int64_t ldw, int64_t valid) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[L + kRowsAtATime] = {};
  int64_t i = 0;
  for (; i + kRowsAtATime <= (valid < L ? valid : L); i += kRowsAtATime)
    multiply_few_rows(a, K, w + i * ldw, ldw, sums + i);
  for (; i < L && i < valid; ++i)
    for (int64_t k = 0; k < K; k += L) sums[i] += load_up_to(a + k, K - k) * load_as<T>(w + i * ldw + k, K - k);
  Vec<T> m[L];
  FUSEDRNN_EACH(j, L) m[j] = sums[j];
  return sum_lanes<T>(m);
}

// epilogue(rows, panels) with the products of rows r0..r1 of a with all gates of panels t0..t1 of w.
template <class T, int G, class Epilogue>
static void sweep_few(const T* a, int64_t lda, const Factor& w, const T* bias, int64_t r0, int64_t r1, int64_t t0,
                      int64_t t1, const Epilogue& epilogue) {
  constexpr int L = kLanes<T>;
  with_type<T>(w.type, [&](auto zero) {
    const auto* weights = static_cast<const decltype(zero)*>(w.p);
    alignas(64) T out[G * L];
    for (int64_t tile = t0; tile < t1; ++tile)
      for (int64_t r = r0; r < r1; ++r) {
        for (int g = 0; g < G; ++g) {
          Vec<T> v =
              dot_products(a + r * lda, w.K, weights + (g * w.N + tile * L) * w.n_stride, w.n_stride, w.N - tile * L);
          if (bias) v += load(bias + (tile * G + g) * L);
          store(out + g * L, v);
        }
        epilogue.apply(r, 1, tile, out, G * L);
      }
  });
}

template <class T>
static void few_products(const T* a, int64_t M, const Factor& b, T* c, int64_t ldc, const Runner& runner) {
  const int64_t N = b.G * b.N;
  const Factor flat{b.p, b.type, 1, N, b.K, b.n_stride, b.k_stride};
  for_each(panels<T>(N), 2.0 * double(M) * double(N) * double(b.K) > kWorthSharing, runner, [&](int64_t tile) {
    sweep_few<T, 1>(a, b.K, flat, nullptr, 0, M, tile, tile + 1, StoreProduct<T>{{c, ldc}, N, false});
  });
}

}  // namespace
}  // namespace fusedrnn
