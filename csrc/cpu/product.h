// Matrix products: the input projection, and the gradients of input and weights. They run on the register tile of the
// time loop, so that their speed does not depend on which library PyTorch was built with: on some processors that
// library runs at less than half of what the tile reaches.
#pragma once
#include "epilogue.h"
#include "pack.h"

namespace fusedrnn {
namespace {

using cpu::Gemm;
using cpu::OuterProduct;

constexpr int64_t kRowBytes = 128 << 10;  // of the left factor: a share of the second-level cache
constexpr int64_t kLeastRows = 48;        // that repay reading the packed panels again
constexpr double kWorthSharing = 2e5;     // floating-point operations

// Rows r0..r1 of c, as many at a time as stay in the second-level cache while all panels pass.
template <class T>
static void multiply_rows(const Gemm<T>& g, int64_t r0, int64_t r1) {
  const StoreProduct<T> to{{g.c, g.ldc}, g.N, g.add};
  const auto p = packed_product<T, 1>(g.a, g.lda, g.b, g.K, nullptr);
  const Blocks parts(r0, r1, int(kRowBytes / (int64_t(sizeof(T)) * (g.K + 1)) + kLeastRows));
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

// ---- sums of outer products: the gradients of weights
//
// Both factors come row after row of the sequence. A tile holds kWideShape.rows features times a slab of some vectors
// of deltas. Rows are taken kOuterDepth at a time: the slab of those is copied together, since the rows of deltas may
// be pages apart, and stays in the first level while the tiles of all features pass. Features are packed by tiles when
// there are enough slabs to repay it. Sums wait in a panel of scratch with a row for each feature, which is transposed
// into the result at the end.

template <class T>
constexpr int64_t kSlab = kWideShape.streams * kLanes<T>;
template <class T>
constexpr int64_t kOuterDepth = (32 << 10) / (kSlab<T> * int64_t(sizeof(T)));
constexpr int64_t kSlabsWorthPacking = 2;

template <class T>
static int64_t outer_panel(int64_t I) {
  const int64_t rows = I + kLanes<T> + kOuterDepth<T>;
  return rows * kSlab<T>;
}
template <class T>
static int64_t outer_scratch(int64_t K, int64_t I, int threads) {
  const int64_t packed = K * (I + kWideShape.rows) + kLanes<T>;
  return outer_panel<T>(I) * threads + packed;
}

// Features as tiles read them: those of row k and tile t are at p + (t depth + k) lda, after the blocks before them.
template <class T>
struct Features {
  const OuterProduct<T>& g;
  const Blocks tiles;
  T* packed;  // or null: they are read where they are

  FUSEDRNN_INLINE int64_t lda() const { return packed ? kWideShape.rows : g.lda; }
  FUSEDRNN_INLINE T* block(int64_t k0, int64_t k1, int64_t tile) const {
    return packed + (k0 * tiles.count + (k1 - k0) * tile) * kWideShape.rows;
  }
  FUSEDRNN_INLINE const T* at(int64_t k0, int64_t k1, int64_t tile) const {
    return packed ? block(k0, k1, tile) : g.a + k0 * g.lda + tiles.begin(tile);
  }
  // Some rows at a time: all rows of a block may fall into the same few sets of the first level.
  void pack(int64_t k0, int64_t k1) const {
    constexpr int L = kLanes<T>, R = kWideShape.rows, kRows = 8;
    for (int64_t k = k0; k < k1; k += kRows)
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        T* to = block(k0, k1, tile) + (k - k0) * R;
        const T* from = g.a + k * g.lda + tiles.begin(tile);
        const int height = tiles.height(tile);
        for (int64_t i = 0; i < kRows && k + i < k1; ++i)
          for (int j = 0; j < R; j += L)
            store_up_to(to + i * R + j, load_up_to(from + i * g.lda + j, height - j), R - j);
      }
  }
};

// Features i0..i1 of `valid` deltas from `first` on: from the panel to the rows of the result.
template <class T>
static void store_transposed(const OuterProduct<T>& g, int64_t first, int64_t valid, int64_t i0, int64_t i1,
                             const T* panel) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t i = i0; i < i1; i += L)
    for (int64_t n = 0; n < valid; n += L) {
      Vec<T> m[L];
      FUSEDRNN_EACH(j, L) m[j] = load(panel + (i - i0 + j) * kSlab<T> + n);
      transpose<T>(m);
      for (int64_t j = 0; j < L && n + j < valid; ++j) {
        T* to = g.out + (first + n + j) * g.ldo + i;
        if (g.add) m[j] += load_up_to(to, i1 - i);
        store_up_to(to, m[j], i1 - i);
      }
    }
}

// One slab of deltas with the features of tiles t0..t1.
template <class T>
static void outer_slab(const Features<T>& features, int64_t slab, int64_t t0, int64_t t1, T* scratch) {
  constexpr int64_t L = kLanes<T>, W = kSlab<T>;
  constexpr int R = kWideShape.rows, S = kWideShape.streams;
  const OuterProduct<T>& g = features.g;
  const int64_t first = slab * W, valid = g.N - first < W ? g.N - first : W, i0 = features.tiles.begin(t0);
  const int vectors = int((valid + L - 1) / L);
  T *const deltas = scratch, *const panel = scratch + kOuterDepth<T> * W;
  for (int64_t k0 = 0; k0 < g.K || k0 == 0; k0 += kOuterDepth<T>) {
    const int64_t k1 = k0 + kOuterDepth<T> < g.K ? k0 + kOuterDepth<T> : g.K;
    for (int64_t k = k0; k < k1; ++k)
      for (int v = 0; v < vectors; ++v)
        store(deltas + (k - k0) * W + v * L, load_up_to(g.d + k * g.ldd + first + v * L, valid - v * L));
    for (int64_t tile = t0; tile < t1; ++tile) {
      T* sums = panel + (features.tiles.begin(tile) - i0) * W;
      const T* a = features.at(k0, k1, tile);
      if (k0 > 0)
        for (int64_t i = 0; i < features.tiles.height(tile) * W; i += L) __builtin_prefetch(sums + i);
      with_streams<S>(vectors, [&](int s, auto count) {
        with_rows<R>(features.tiles.height(tile), [&](auto height) {
          const Start<T> start{k0 > 0 ? sums + s * L : nullptr, W};
          // The first tiles fetch the rows that come next, a vector of the slab each.
          const T* next = tile - t0 < vectors && k1 < g.K ? g.d + k1 * g.ldd + first + (tile - t0) * L : deltas;
          const Ahead ahead{reinterpret_cast<const char*>(next), next == deltas ? 0 : g.ldd * int64_t(sizeof(T))};
          multiply_tile<T, height.value, count.value, 1, true>(a, features.lda(), deltas + s * L, W, L, k1 - k0, start,
                                                               sums + s * L, W, ahead);
        });
      });
    }
  }
  const int64_t end = t1 < features.tiles.count ? features.tiles.begin(t1) : g.I;
  store_transposed(g, first, valid, i0, end, panel);
}

template <class T>
static void outer_product(const OuterProduct<T>& g, const Runner& runner) {
  if (g.N == 0 || g.I == 0) return;
  const int64_t slabs = (g.N + kSlab<T> - 1) / kSlab<T>, threads = runner.threads;
  const bool alone = 2.0 * double(g.I) * double(g.N) * double(g.K) < kWorthSharing;
  const bool packs = !alone && slabs >= kSlabsWorthPacking;
  T* const packed = packs ? g.scratch + outer_panel<T>(g.I) * threads : nullptr;
  const Features<T> features{g, Blocks(0, g.I, kWideShape.rows), packed};
  if (packs)
    for_each((g.K + kOuterDepth<T> - 1) / kOuterDepth<T>, true, runner, [&](int64_t block) {
      const int64_t k0 = block * kOuterDepth<T>, k1 = k0 + kOuterDepth<T>;
      features.pack(k0, k1 < g.K ? k1 : g.K);
    });
  // By slabs each thread reads its own deltas; by features the shares are more nearly equal.
  const bool by_slabs = slabs % threads == 0 || slabs >= 8 * threads;
  const int64_t units = by_slabs ? slabs : features.tiles.count;
  const int64_t shares = alone ? 1 : units < threads ? units : threads;
  for_each(shares, shares > 1, runner, [&](int64_t s) {
    const int64_t u0 = units * s / shares, u1 = units * (s + 1) / shares;
    T* panel = g.scratch + s * outer_panel<T>(g.I);
    for (int64_t slab = by_slabs ? u0 : 0; slab < (by_slabs ? u1 : slabs); ++slab)
      outer_slab(features, slab, by_slabs ? 0 : u0, by_slabs ? features.tiles.count : u1, panel);
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
