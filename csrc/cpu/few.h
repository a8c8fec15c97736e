// Products of few rows with a factor that is read where it is. Packing a matrix costs as much as some products with one
// row, so a step of generation must do without.
#pragma once
#include "pack.h"
#include "product.h"

namespace fusedrnn {
namespace {

// Independent sums of a row: what hides the latency of a multiply-add. Rows are read one after the other, so that the
// weights are one stream, front to back: four rows side by side read the second level at two thirds of its speed (Zen
// 5: 125 GB/s instead of 187 at K = 256).
constexpr int kSumsOfRow = 4;
constexpr int64_t kAheadBytes = 4096;  // where weights are asked for

// The sum of a[K] * w[K], lane by lane.
template <class T, class S>
FUSEDRNN_INLINE Vec<T> multiply_row(const T* a, int64_t K, const S* w) {
  constexpr int L = kLanes<T>, N = kSumsOfRow;
  Vec<T> acc[N] = {};
  int64_t k = 0;
  for (; k + N * L <= K; k += N * L) FUSEDRNN_EACH(n, N) {
      acc[n] += load(a + k + n * L) * load_as<T>(w + k + n * L, L);
      __builtin_prefetch(reinterpret_cast<const char*>(w + k + n * L) + kAheadBytes);
    }
  for (; k < K; k += L) acc[0] += load_up_to(a + k, K - k) * load_as<T>(w + k, K - k);
  return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}

// out[lane] = a[K] . w[unit + lane][K], for the first `valid` lanes.
template <class T, class S>
FUSEDRNN_INLINE Vec<T> dot_products(const T* a, int64_t K, const S* w, int64_t ldw, int64_t valid) {
  constexpr int L = kLanes<T>;
  Vec<T> m[L];
  const int64_t rows = valid < L ? valid : L;
  for (int64_t i = 0; i < rows; ++i) m[i] = multiply_row(a, K, w + i * ldw);
  for (int64_t i = rows; i < L; ++i) m[i] = Vec<T>{};
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
