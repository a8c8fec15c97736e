// The gradients of weights and biases: sums over the rows of a sequence of outer products of deltas and features, and
// of deltas alone.
//
// As a product, the deltas of one unit are a row of it and the features, packed, its panels; so it runs on the same
// tile as the others, and each value of the result is written once. Every thread takes some units of each gate, and
// packs their deltas by tiles, as many as stay in the second-level cache while all panels pass, once for both weights
// and the bias.
#pragma once
#include "product.h"

namespace fusedrnn {
namespace {

using cpu::WeightGradient;
using cpu::WeightGradients;

// Vectors that hold the rows of a tile.
template <class T>
constexpr int64_t kTileVectors = (kWideShape.rows + kLanes<T> - 1) / kLanes<T>;

// Room for packed deltas, and for partial sums of them.
template <class T>
static int64_t packed_deltas(int64_t K) {
  return panels<T>(rows_in_cache<T>(K) * K) * kLanes<T>;
}
template <class T>
static int64_t delta_scratch(int64_t K) {
  return packed_deltas<T>(K) + rows_in_cache<T>(K) * kTileVectors<T> * kLanes<T>;
}

template <class T>
static int64_t gradient_scratch(int64_t K, int64_t N0, int64_t N1, int threads) {
  return packed_size<T>(1, N0, K) + packed_size<T>(1, N1, K) + threads * delta_scratch<T>(K);
}

constexpr int64_t kPackedRows = 16;  // at a time

// Deltas k0..k1 of columns c0 + unit by tiles, as sweep() reads a left factor by columns. Their sums over k are added
// to `parts`, kVectors vectors for each tile.
template <class T>
static void pack_delta_rows(const WeightGradients<T>& g, int64_t c0, const Blocks& tiles, int64_t k0, int64_t k1,
                            T* out, T* parts) {
  constexpr int64_t L = kLanes<T>, kVectors = kTileVectors<T>;
  for (int64_t i = 0; i < tiles.count; ++i, parts += kVectors * L) {
    const int height = tiles.height(i);
    const T* from = g.d + k0 * g.ldd + c0 + tiles.begin(i);
    T* to = out + tiles.begin(i) * g.K + k0 * height;
    Vec<T> sum[kVectors] = {};
    // Rows are far apart, so that the processor sees no stream. Into the second level: they may share few sets of the
    // first.
    const bool line_begins = i == 0 || reinterpret_cast<uintptr_t>(from + height - 1) % 64 < height * sizeof(T);
    int64_t k = k0;
    // What a vector has too much is overwritten by the rows that follow, but not the tile after them.
    if constexpr (kWideShape.rows <= L / 2)
      for (; k < k1 && k <= g.K - L / 2; ++k, from += g.ldd, to += height) {
        if (line_begins) __builtin_prefetch(from + kPackedRows * g.ldd + height - 1, 0, 2);
        const Vec<T> v = load_half(from, height);
        sum[0] += v;
        store_half(to, v);
      }
    for (; k < k1; ++k, from += g.ldd, to += height) FUSEDRNN_EACH(j, kVectors) {
        const Vec<T> v = load_up_to(from + j * L, height - j * L);
        sum[j] += v;
        store_up_to(to + j * L, v, (g.K - k) * height - j * L);
      }
    FUSEDRNN_EACH(j, kVectors) store(parts + j * L, load(parts + j * L) + sum[j]);
  }
}

// All deltas of some columns, and their sums, which are made of parts over kShort rows. Some rows at a time: all of
// them may fall into the same few sets of the first-level cache.
template <class T>
static void pack_deltas(const WeightGradients<T>& g, int64_t c0, const Blocks& tiles, T* out, T* parts) {
  constexpr int64_t L = kLanes<T>, kVectors = kTileVectors<T>;
  for (int64_t k = 0; k < g.K; k += kShort) {
    const int64_t end = k + kShort < g.K ? k + kShort : g.K;
    for (int64_t i = 0; i < tiles.count * kVectors; ++i) store(parts + i * L, Vec<T>{});
    for (int64_t k0 = k; k0 < end; k0 += kPackedRows)
      pack_delta_rows(g, c0, tiles, k0, k0 + kPackedRows < end ? k0 + kPackedRows : end, out, parts);
    if (!g.sums) continue;
    for (int64_t i = 0; i < tiles.count; ++i)
      for (int64_t j = 0; j < kVectors; ++j) {
        T* total = g.sums + c0 + tiles.begin(i) + j * L;
        const int64_t valid = tiles.height(i) - j * L;
        Vec<T> sum = load(parts + (i * kVectors + j) * L);
        if (k > 0 || g.add) sum += load_up_to(total, valid);
        store_up_to(total, sum, valid);
      }
  }
}

// Whether features are read where they are. Packing whole rows as short as these would cost more than it saves; rows
// that are longer share too few sets of the caches, and vectors that cross the end of a row could leave the tensor.
constexpr int64_t kShortRowBytes = 512;
template <class T>
static bool in_place(const WeightGradient<T>& w, int64_t B) {
  const Stored& s = w.features.rows;
  const bool even = B == 1 || w.features.t1 - w.features.t0 <= 1 || s.step == B * s.row;
  return w.N % kLanes<T> == 0 && w.N * int64_t(sizeof(T)) <= kShortRowBytes && s.p && s.type == cpu::kTypeOf<T> &&
         s.row == w.N && even;
}

template <class T>
static void add_products(const WeightGradients<T>& g, const WeightGradient<T>& w, const T* packed, const T* deltas,
                         int64_t units, const StoreProduct<T>& to) {
  auto p = packed_product<T, 1>(deltas, g.K, packed, g.K, nullptr);
  if (packed) return sweep<T, 1, true>(p, 0, units, 0, panels<T>(w.N), to);
  const Steps<const T> rows = w.features.rows.template as<const T>();
  p.weights = rows.at(w.features.t0), p.step = g.B == 1 ? rows.step : rows.row, p.stream = kLanes<T>;
  sweep<T, 1, true>(p, 0, units, 0, panels<T>(w.N), to);
}

// The rows that belong to units u0..u1 of one gate of the deltas.
template <class T>
static void unit_gradients(const WeightGradients<T>& g, const T* const (&features)[2], int64_t slot, int64_t u0,
                           int64_t u1, T* scratch) {
  const Blocks parts(u0, u1, rows_in_cache<T>(g.K));
  for (int64_t i = 0; i < parts.count; ++i) {
    const int64_t unit = parts.begin(i), units = parts.height(i);
    pack_deltas(g, slot * g.H + unit, tiles_of<T, 1>(0, units), scratch, scratch + packed_deltas<T>(g.K));
    for (int w = 0; w < 2; ++w) {
      const WeightGradient<T>& to = g.of[w];
      if (!to.out || to.gate[slot] < 0) continue;
      const StoreProduct<T> store{{to.out + (to.gate[slot] * g.H + unit) * to.N, to.N}, to.N, g.add};
      add_products(g, to, features[w], scratch, units, store);
    }
  }
}

template <class T>
static void pack_features(const WeightGradients<T>& g, T* const (&packed)[2], bool alone, const Runner& runner) {
  const auto groups = [&](int w) { return g.of[w].out && packed[w] ? panel_groups<T>(g.of[w].N) : 0; };
  if (groups(0) + groups(1) == 0) return;
  for_each(groups(0) + groups(1), !alone, runner, [&](int64_t group) {
    const int w = group >= groups(0);
    pack_piece(g.of[w].features, g.B, g.of[w].N, group - w * groups(0), g.K, 0, packed[w]);
  });
}

template <class T>
static void weight_gradients(const WeightGradients<T>& g, const Runner& runner) {
  const int64_t columns = (g.of[0].out ? g.of[0].N : 0) + (g.of[1].out ? g.of[1].N : 0);
  const bool alone = 2.0 * double(columns + 1) * double(g.slots * g.H) * double(g.K) < kWorthSharing;
  T *packed[2], *next = g.scratch;
  for (int w = 0; w < 2; ++w) {
    packed[w] = in_place(g.of[w], g.B) ? nullptr : next;
    next += packed_size<T>(1, g.of[w].N, g.K);
  }
  T* const deltas = next;
  pack_features(g, packed, alone, runner);
  const T* const features[2] = {packed[0], packed[1]};
  const int64_t units = (g.H + kWideShape.rows - 1) / kWideShape.rows;
  const int64_t shares = alone ? 1 : units < runner.threads ? units : runner.threads;
  for_each(shares, shares > 1, runner, [&](int64_t s) {
    T* scratch = deltas + s * delta_scratch<T>(g.K);
    for (int64_t slot = 0; slot < g.slots; ++slot)
      unit_gradients(g, features, slot, g.H * s / shares, g.H * (s + 1) / shares, scratch);
  });
}

}  // namespace
}  // namespace fusedrnn
