// Matrix products: the input projection, and the gradients of input and weights. They run on the register tile of the
// time loop, so that their speed does not depend on which library PyTorch was built with: on some processors that
// library runs at less than half of what the tile reaches.
//
// c[M, N] (+)= a[M, K] b[K, N]. The right factor is packed into panels, K in blocks: a block of panels stays in the
// caches while all rows pass. A left factor that is stored with k outermost (a transposed matrix) is packed the same
// way, one panel of rows at a time, by the thread that uses it.
#pragma once
#include "kernels.h"
#include "pack.h"
#include "tile.h"

namespace fusedrnn {
namespace {

using cpu::Gemm;
using cpu::Runner;

constexpr int64_t kBlockBytes = 4 << 20;  // of packed panels: a share of the last-level cache
constexpr int64_t kRowBytes = 128 << 10;  // of the left factor: a share of the second-level cache
constexpr int64_t kLeastRows = 48;        // that repay reading the packed panels again
constexpr int64_t kFewRows = 3;           // fewer rows than these do not repay packing
constexpr double kWorthSharing = 2e5;     // floating-point operations

template <class T>
struct StoreProduct {
  T* c;
  int64_t ldc, N;
  bool add;

  FUSEDRNN_INLINE void touch(int64_t, int, int64_t) const {}

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    const int64_t column = tile * kLanes<T>, valid = N - column;
    for (int i = 0; i < rows; ++i) {
      T* to = c + (row + i) * ldc + column;
      Vec<T> v = load(product + i * stride);
      if (add) v += load_up_to(to, valid);
      store_up_to(to, v, valid);
    }
  }
};

// Steps of K that are packed at a time: in equal blocks.
template <class T>
int64_t block_steps(const Gemm<T>& g) {
  const int64_t row_bytes = panels<T>(g.N) * kLanes<T> * int64_t(sizeof(T));
  int64_t fitting = kBlockBytes / (row_bytes ? row_bytes : 1);
  fitting = fitting < 256 ? 256 : fitting > 1024 ? 1024 : fitting;
  const int64_t blocks = (g.K + fitting - 1) / fitting;
  return blocks ? (g.K + blocks - 1) / blocks : 0;
}

template <class T>
static int64_t product_workspace(const Gemm<T>& g, int threads) {
  return block_steps(g) * kLanes<T> * (panels<T>(g.N) + (g.a_k == 1 ? 0 : threads));
}

// Rows r0..r1 of c for one block of K, from packed panels.
template <class T>
static void multiply_rows(const Gemm<T>& g, int64_t k0, int64_t K, int64_t r0, int64_t r1, const T* packed,
                          T* scratch) {
  constexpr int L = kLanes<T>;
  const StoreProduct<T> to{g.c, g.ldc, g.N, g.add || k0 > 0};
  const int64_t tiles = panels<T>(g.N);
  if (g.a_k == 1) {
    // As many rows at a time as stay in the second-level cache while all panels pass.
    const Blocks blocks(r0, r1, int(kRowBytes / (int64_t(sizeof(T)) * (K + 1)) + kLeastRows));
    for (int64_t i = 0; i < blocks.count; ++i)
      sweep<T, 1>(Product<T>{g.a + k0, g.a_row, packed, K, nullptr}, blocks.begin(i), blocks.begin(i + 1), 0, tiles,
                  to);
    return;
  }
  for (int64_t r = r0; r < r1; r += L) {
    const int64_t end = r + L < r1 ? r + L : r1;
    for (int64_t k = 0; k < K; ++k) store(scratch + k * L, load_up_to(g.a + (k0 + k) * g.a_k + r, end - r));
    // Rows of a transposed panel are one apart: sweep() counts them from its first.
    StoreProduct<T> here = to;
    here.c += r * g.ldc;
    sweep<T, 1, true>(Product<T>{scratch, 1, packed, K, nullptr}, 0, end - r, 0, tiles, here);
  }
}

// c[m, tile] for few rows and b stored with k innermost: dot products along the rows of b, nothing packed.
template <class T>
static void multiply_few_rows(const Gemm<T>& g, int64_t tile) {
  constexpr int L = kLanes<T>;
  const int64_t column = tile * L, valid = g.N - column < L ? g.N - column : L;
  for (int64_t m = 0; m < g.M; ++m) {
    Vec<T> sums[L] = {};
    for (int64_t k = 0; k < g.K; k += L) {
      const Vec<T> a = load_up_to(g.a + m * g.a_row + k, g.K - k);
      const T* b = g.b + column * g.b_n + k;
      if (valid == L && g.K - k >= L) {
        FUSEDRNN_EACH(i, L) sums[i] += a * load(b + i * g.b_n);
      } else {
        for (int i = 0; i < valid; ++i) sums[i] += a * load_up_to(b + i * g.b_n, g.K - k);
      }
    }
    transpose<T>(sums);
    Vec<T> total = sums[0];
    for (int i = 1; i < L; ++i) total += sums[i];
    StoreProduct<T>{g.c, g.ldc, g.N, g.add}.apply(m, 1, tile, reinterpret_cast<const T*>(&total), 0);
  }
}

template <class T>
static void product(const Gemm<T>& g, const Runner& runner) {
  constexpr int L = kLanes<T>;
  const int64_t tiles = panels<T>(g.N), block = block_steps(g);
  const bool alone = runner.threads <= 1 || 2.0 * double(g.M) * double(g.N) * double(g.K) < kWorthSharing;
  if (g.M < kFewRows && g.a_k == 1 && g.b_k == 1) {
    for_each_panel(tiles, !alone, runner, [&](int64_t t) { multiply_few_rows(g, t); });
    return;
  }
  // Panels of rows, so that a share of a transposed factor begins with one.
  const int64_t units = (g.M + L - 1) / L, shares = alone ? 1 : units < runner.threads ? units : runner.threads;
  for (int64_t k0 = 0; k0 == 0 || k0 < g.K; k0 += block) {
    const int64_t K = g.K - k0 < block ? g.K - k0 : block;
    for_each_panel(tiles, !alone, runner, [&](int64_t t) {
      T* panel = g.workspace + t * K * L;
      if (g.b_k == 1)
        pack_rows<T, 1>(g.b + k0, g.N, g.b_n, K, t, panel);
      else
        pack_columns(g.b + k0 * g.b_k, g.b_k, g.N, K, t, panel);
    });
    for_each_panel(shares, shares > 1, runner, [&](int64_t s) {
      const int64_t r0 = units * s / shares * L, end = units * (s + 1) / shares * L, r1 = end < g.M ? end : g.M;
      multiply_rows(g, k0, K, r0, r1, g.workspace, g.workspace + (tiles + s) * block * L);
    });
    if (g.K == 0) return;
  }
}

}  // namespace
}  // namespace fusedrnn
