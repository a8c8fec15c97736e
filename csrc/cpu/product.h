// Matrix products: the input projection, and the gradients of the input. They run on the register tile of the time
// loop, so that their speed does not depend on which library PyTorch was built with: on some processors that library
// runs at less than half of what the tile reaches.
#pragma once
#include "epilogue.h"
#include "pack.h"

namespace fusedrnn {
namespace {

using cpu::Gemm;

constexpr int64_t kRowBytes = 128 << 10;  // of the left factor: a share of the second-level cache
constexpr int64_t kLeastRows = 48;        // that repay reading the packed panels again
constexpr double kWorthSharing = 2e5;     // floating-point operations

// Rows of K values that stay in the second-level cache while all panels pass.
template <class T>
static int rows_in_cache(int64_t K) {
  return int(kRowBytes / (int64_t(sizeof(T)) * (K + 1)) + kLeastRows);
}

// Rows r0..r1 of c.
template <class T>
static void multiply_rows(const Gemm<T>& g, int64_t r0, int64_t r1) {
  const StoreProduct<T> to{{g.c, g.ldc}, g.N, false};
  const auto p = packed_product<T, 1>(g.a, g.lda, g.b, g.K, nullptr);
  const Blocks parts(r0, r1, rows_in_cache<T>(g.K));
  for (int64_t i = 0; i < parts.count; ++i) sweep<T, 1>(p, parts.begin(i), parts.begin(i + 1), 0, panels<T>(g.N), to);
}

template <class T>
static void product(const Gemm<T>& g, const Runner& runner) {
  const bool alone = 2.0 * double(g.M) * double(g.N) * double(g.K) < kWorthSharing;
  const int64_t units = (g.M + kWideShape.rows - 1) / kWideShape.rows;
  const int64_t shares = alone ? 1 : units < runner.threads ? units : runner.threads;
  for_each(shares, shares > 1, runner, [&](int64_t s) {
    const int64_t r0 = units * s / shares * kWideShape.rows, end = units * (s + 1) / shares * kWideShape.rows;
    multiply_rows(g, r0, end < g.M ? end : g.M);
  });
}

template <class T>
static void add_by_token(const Steps<const T>& rows, const Steps<const int64_t>& tokens, int64_t r0, int64_t r1,
                         int64_t B, int64_t n, T* out, const Runner& runner) {
  constexpr int64_t kColumns = 16 * kLanes<T>;
  for_each((n + kColumns - 1) / kColumns, (r1 - r0) * n > (1 << 15), runner, [&](int64_t part) {
    const int64_t end = (part + 1) * kColumns < n ? (part + 1) * kColumns : n;
    for (int64_t r = r0; r < r1; ++r) {
      const T* from = rows.at(r / B, r % B);
      T* to = out + *tokens.at(r / B, r % B) * n;
      for (int64_t i = part * kColumns; i < end; i += kLanes<T>)
        store_up_to(to + i, load_up_to(to + i, end - i) + load_up_to(from + i, end - i), end - i);
    }
  });
}

}  // namespace
}  // namespace fusedrnn
