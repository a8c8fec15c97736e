// The register tile: a few batch rows times all gates of one or more vectors of hidden units.
//
// A weight matrix is packed in panels. Panel `tile` covers kLanes neighbouring hidden units; for each k it holds G
// vectors, one per gate, so that the tile reads it front to back. The tile keeps R x (U G) accumulators in registers,
// U panels wide, and stores them to a scratch block of at most 2 KB that stays in L1, where the gate math picks them
// up: sharing one function between products and gate math made the compiler spill accumulators.
#pragma once
#include "simd.h"

namespace fusedrnn {
namespace {

template <int N>
struct Int {
  static constexpr int value = N;
};

template <class T>
constexpr int64_t panels(int64_t H) {
  return (H + kLanes<T> - 1) / kLanes<T>;
}

// Rows of a tile that leaves registers for U G weights and a broadcast.
constexpr int tile_rows(int vectors) {
  return kRegisters == 32 ? (vectors == 3 ? 8 : vectors > 4 ? 2 : 6) : vectors <= 2 ? 6 : vectors == 3 ? 4 : 3;
}

template <class T>
struct Product {
  const T* a;        // rows of the left factor
  int64_t lda;       // from row to row
  const T* weights;  // panels of G * kLanes * K
  int64_t K;
  const T* bias;  // panels of G * kLanes that the accumulators start from, or null for 0
};

// out[R][U][G][kLanes] = bias + a[R][K] * weights. `ahead` walks through the next panel while this one is used.
// Transposed: a is a panel a[K][kLanes], and its rows are columns of that.
template <class T, int R, int U, int G, bool Transposed>
__attribute__((noinline)) static void multiply_tile(const T* a, int64_t lda, const T* w, int64_t panel, int64_t K,
                                                    const T* bias, T* out, const char* ahead, int64_t ahead_step) {
  constexpr int L = kLanes<T>, N = U * G;
  const auto at = [&](int r, int64_t k) { return Transposed ? a[k * L + r] : a[r * lda + k]; };
  Vec<T> acc[R][N];
  FUSEDRNN_EACH(r, R) FUSEDRNN_EACH(n, N) acc[r][n] = bias ? load(bias + n * L) : Vec<T>{};
#if !defined(__clang__)
#pragma GCC unroll 2
#endif
  for (int64_t k = 0; k < K; ++k) {
    if constexpr (kRegisters == 32 || N < R) {
      Vec<T> b[N];
      FUSEDRNN_EACH(u, U) FUSEDRNN_EACH(g, G) b[u * G + g] = load(w + u * panel + g * L);
      FUSEDRNN_EACH(r, R) {
        const Vec<T> av = broadcast(at(r, k));
        FUSEDRNN_EACH(n, N) acc[r][n] += av * b[n];
      }
    } else {  // too few registers for the weights: hold the rows instead
      Vec<T> av[R];
      FUSEDRNN_EACH(r, R) av[r] = broadcast(at(r, k));
      FUSEDRNN_EACH(u, U) FUSEDRNN_EACH(g, G) {
        const Vec<T> b = load(w + u * panel + g * L);
        FUSEDRNN_EACH(r, R) acc[r][u * G + g] += av[r] * b;
      }
    }
    w += G * L;
    if constexpr (R > 2) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += ahead_step;
    }
  }
  FUSEDRNN_EACH(r, R) FUSEDRNN_EACH(n, N) store(out + (r * N + n) * L, acc[r][n]);
}

template <int R, class F>
FUSEDRNN_INLINE void with_rows(int rows, const F& f) {
  if (rows == R)
    f(Int<R>{});
  else if constexpr (R > 1)
    with_rows<R - 1>(rows, f);
}

// All rows r0..r1 of U panels from `tile` on. Rows are cut into blocks of nearly equal height, since a block of one
// row costs as much time as one of three.
template <class T, int U, int G, bool Transposed, class Epilogue>
FUSEDRNN_INLINE void sweep_rows(const Product<T>& p, int64_t r0, int64_t r1, int64_t tile, bool last,
                                const Epilogue& epilogue) {
  constexpr int N = U * G, Rmax = tile_rows(N), L = kLanes<T>;
  alignas(64) T out[Rmax * N * L];
  const int64_t panel = p.K * G * L, rows = r1 - r0, blocks = (rows + Rmax - 1) / Rmax;
  const T* w = p.weights + tile * panel;
  const T* bias = p.bias ? p.bias + tile * G * L : nullptr;
  // The prefetches of one sweep cover the panels that follow.
  const int64_t ahead_step = last ? 0 : (int64_t(sizeof(T)) * N * L + blocks - 1) / blocks;
  const char* ahead = reinterpret_cast<const char*>(last ? w : w + U * panel);
  int64_t r = r0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int R = int(rows * (i + 1) / blocks - rows * i / blocks);
    epilogue.touch(r, R, tile);
    with_rows<Rmax>(R, [&](auto n) {
      constexpr int height = decltype(n)::value;
      multiply_tile<T, height, U, G, Transposed>(p.a + r * p.lda, p.lda, w, panel, p.K, bias, out, ahead, ahead_step);
      for (int u = 0; u < U; ++u) epilogue.template apply<height, N>(r, tile + u, out + u * G * L);
    });
    ahead += ahead_step * p.K;
    r += R;
  }
}

// epilogue(rows, panels) for rows r0..r1 and panels t0..t1. Few rows leave registers free: then more panels at once.
template <class T, int G, bool Transposed = false, class Epilogue>
static void sweep(const Product<T>& p, int64_t r0, int64_t r1, int64_t t0, int64_t t1, const Epilogue& epilogue) {
  constexpr int wide = kRegisters == 32 ? 8 / G : 4 / G,
                normal = kRegisters == 32 ? (G == 1 ? 4 : 1) : (G == 1 ? 2 : 1);
  if (r1 <= r0) return;
  int64_t t = t0;
  if constexpr (wide > normal)
    if (r1 - r0 <= 2)
      for (; t + wide <= t1; t += wide) sweep_rows<T, wide, G, Transposed>(p, r0, r1, t, t + wide >= t1, epilogue);
  for (; t + normal <= t1; t += normal) sweep_rows<T, normal, G, Transposed>(p, r0, r1, t, t + normal >= t1, epilogue);
  if constexpr (normal > 2)
    for (; t + 2 <= t1; t += 2) sweep_rows<T, 2, G, Transposed>(p, r0, r1, t, t + 2 >= t1, epilogue);
  if constexpr (normal > 1)
    for (; t < t1; ++t) sweep_rows<T, 1, G, Transposed>(p, r0, r1, t, t + 1 >= t1, epilogue);
}

}  // namespace
}  // namespace fusedrnn
