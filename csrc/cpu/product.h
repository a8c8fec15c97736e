// Matrix products: the input projection, and the gradients of input and weights. They run on the register tile of the
// time loop, so that their speed does not depend on which library PyTorch was built with: on some processors that
// library runs at less than half of what the tile reaches.
//
// The right factor is packed. A left factor that is stored with k outermost (a transposed matrix) is packed too, some
// blocks of rows at a time, by the thread that uses it.
#pragma once
#include "epilogue.h"
#include "pack.h"

namespace fusedrnn {
namespace {

using cpu::Gemm;

constexpr int64_t kRowBytes = 128 << 10;  // of the left factor: a share of the second-level cache
constexpr int64_t kLeastRows = 48;        // that repay reading the packed panels again
constexpr int64_t kBlocksAtATime = 8;     // of a transposed left factor
constexpr double kWorthSharing = 2e5;     // floating-point operations

template <class T>
static int64_t product_scratch(int64_t K, int threads) {
  return kBlocksAtATime * K * kBlockStride<T> * threads;
}

// Rows r0..r1 of c, as many at a time as stay in the second-level cache while all panels pass.
template <class T>
static void multiply_rows(const Gemm<T>& g, int64_t r0, int64_t r1) {
  const StoreProduct<T> to{{g.c, g.ldc}, g.N, g.add};
  const auto p = packed_product<T, 1>(g.a, g.a_row, g.b, g.K, nullptr);
  const Blocks parts(r0, r1, int(kRowBytes / (int64_t(sizeof(T)) * (g.K + 1)) + kLeastRows));
  for (int64_t i = 0; i < parts.count; ++i) sweep<T, 1>(p, parts.begin(i), parts.begin(i + 1), 0, panels<T>(g.N), to);
}

template <class T>
static void multiply_transposed_rows(const Gemm<T>& g, int64_t r0, int64_t r1, T* scratch) {
  constexpr int L = kLanes<T>, S = kBlockStride<T>;
  const StoreProduct<T> to{{g.c, g.ldc}, g.N, g.add};
  const Blocks parts(r0, r1, kBlocksAtATime * kBlockRows);
  for (int64_t part = 0; part < parts.count; ++part) {
    const Blocks blocks(parts.begin(part), parts.begin(part + 1), kBlockRows);
    for (int64_t i = 0; i < blocks.count; ++i) {
      const T* from = g.a + blocks.begin(i);
      T* block = scratch + i * g.K * S;
      for (int64_t k = 0; k < g.K; ++k)
        for (int j = 0; j < S; j += L) store(block + k * S + j, load_up_to(from + k * g.a_k + j, blocks.height(i) - j));
    }
    sweep<T, 1, true>(packed_product<T, 1>(scratch, 0, g.b, g.K, nullptr), parts.begin(part), parts.begin(part + 1), 0,
                      panels<T>(g.N), to);
  }
}

template <class T>
static void product(const Gemm<T>& g, const Runner& runner) {
  const bool alone = 2.0 * double(g.M) * double(g.N) * double(g.K) < kWorthSharing;
  const int64_t units = (g.M + kBlockRows - 1) / kBlockRows;
  const int64_t shares = alone ? 1 : units < runner.threads ? units : runner.threads;
  for_each(shares, shares > 1, runner, [&](int64_t s) {
    const int64_t r0 = units * s / shares * kBlockRows, end = units * (s + 1) / shares * kBlockRows;
    const int64_t r1 = end < g.M ? end : g.M;
    if (g.a_k == 1)
      multiply_rows(g, r0, r1);
    else
      multiply_transposed_rows(g, r0, r1, g.scratch + s * product_scratch<T>(g.K, 1));
  });
}

// Eight panels side by side, so that whole cache lines are read row after row.
template <class T>
static void column_sums(const T* a, int64_t rows, int64_t n, T* out, bool add, const Runner& runner) {
  constexpr int L = kLanes<T>, kBlock = 32, kWide = 8;
  for_each((n + kWide * L - 1) / (kWide * L), rows * n > (1 << 15), runner, [&](int64_t t) {
    const int64_t column = t * kWide * L;
    Vec<T> total[kWide] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
      const int64_t r1 = r0 + kBlock < rows ? r0 + kBlock : rows;
      Vec<T> part[kWide] = {};
      for (int64_t r = r0; r < r1; ++r) {
        const T* row = a + r * n + column;
        FUSEDRNN_EACH(i, kWide) part[i] += load_up_to(row + i * L, n - column - i * L);
      }
      FUSEDRNN_EACH(i, kWide) total[i] += part[i];
    }
    for (int i = 0; i < kWide; ++i) {
      const int64_t at = column + i * L;
      if (add) total[i] += load_up_to(out + at, n - at);
      store_up_to(out + at, total[i], n - at);
    }
  });
}

template <class T>
static void add_by_token(const Steps<const T>& rows, const Steps<const int64_t>& tokens, int64_t t0, int64_t t1,
                         int64_t B, int64_t n, T* out, const Runner& runner) {
  constexpr int64_t kColumns = 16 * kLanes<T>;
  for_each((n + kColumns - 1) / kColumns, (t1 - t0) * B * n > (1 << 15), runner, [&](int64_t part) {
    const int64_t end = (part + 1) * kColumns < n ? (part + 1) * kColumns : n;
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t b = 0; b < B; ++b) {
        const T* from = rows.at(t, b);
        T* to = out + *tokens.at(t, b) * n;
        for (int64_t i = part * kColumns; i < end; i += kLanes<T>)
          store_up_to(to + i, load_up_to(to + i, end - i) + load_up_to(from + i, end - i), end - i);
      }
  });
}

}  // namespace
}  // namespace fusedrnn
