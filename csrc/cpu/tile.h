// The register tile: a few batch rows times some vectors of gates, and the sweep of it over rows and hidden units.
//
// A weight matrix is packed in streams. The units of one vector (kLanes neighbouring hidden units) own G / kWidth<G>
// streams; for each k a stream holds kWidth<G> vectors, one per gate, so that a tile reads it front to back. The tile
// keeps R rows x S streams x kWidth vectors of accumulators in registers and stores them to a block of scratch in the
// first-level cache, where the gate math picks them up: sharing one function between products and gate math made the
// compiler spill accumulators.
//
// K is cut so that a piece of the weights stays in the first level while some tiles of rows pass, and their sums wait
// in the scratch block. With 32 registers a tile is large enough to be fed from the second level where its sums are
// only stored: then one tile passes at a time.
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

constexpr bool kManyRegisters = kRegisters == 32;

template <int G>
constexpr int kWidth = G == 4 && !kManyRegisters ? 2 : G;

// The shape of a tile for a number of rows. Few rows leave registers free: then more streams at once, so that there are
// always enough independent sums to hide the latency of a multiply-add.
struct TileShape {
  int most_rows, rows, streams;
};
template <int W>
constexpr TileShape kShapes[] = {};
constexpr int64_t kAnyRows = INT32_MAX;
#if FUSEDRNN_REGISTERS == 32
template <>
constexpr TileShape kShapes<4>[] = {{2, 2, 2}, {kAnyRows, 6, 1}};
template <>
constexpr TileShape kShapes<3>[] = {{2, 2, 2}, {kAnyRows, 8, 1}};
template <>
constexpr TileShape kShapes<1>[] = {{2, 2, 8}, {kAnyRows, 6, 4}};
#else
template <>
constexpr TileShape kShapes<2>[] = {{1, 1, 4}, {3, 3, 2}, {kAnyRows, 6, 1}};
template <>
constexpr TileShape kShapes<3>[] = {{2, 2, 2}, {kAnyRows, 4, 1}};
template <>
constexpr TileShape kShapes<1>[] = {{1, 1, 8}, {3, 3, 4}, {kAnyRows, 6, 2}};
#endif

// The shape for many rows and one gate.
constexpr TileShape kWideShape = kShapes<1>[sizeof(kShapes<1>) / sizeof(TileShape) - 1];

// Sums are made of parts over about this many k, and of two where it is less: the rounding error of one long sum would
// grow with its length. Parts of the left factors by columns, whose sums are over the rows of a sequence and cancel
// more, are short ones.
constexpr int64_t kDepth = 256, kShort = 128;

constexpr int kVectorsAtATime = kManyRegisters ? 4 : 8;                // vectors of gates that use the same rows
constexpr int64_t kFirstLevel = kManyRegisters ? 32 << 10 : 16 << 10;  // bytes of weights that stay there
// Tiles of rows that pass a piece of the weights before their epilogue: with gate math, and where sums are only stored.
constexpr int kTilesOfGates = kManyRegisters ? 4 : 8, kTilesOfSums = kManyRegisters ? 1 : 8;

template <class T>
struct Product {
  const T* a;            // rows of the left factor; or its tiles, one after the other, by columns
  int64_t lda;           // from row to row; K where it is by columns
  const T* weights;      // streams of kWidth<G> * kLanes values for each k
  int64_t step, stream;  // from k to k, from stream to stream
  int64_t K;
  const T* bias;  // panels of G * kLanes that the sums start from, or null for 0
  int64_t k0;     // where K begins in a left factor by columns
};

// The product with a packed factor of G gates and K columns.
template <class T, int G>
FUSEDRNN_INLINE Product<T> packed_product(const T* a, int64_t lda, const T* weights, int64_t K, const T* bias) {
  constexpr int64_t step = kWidth<G> * kLanes<T>;
  return {a, lda, weights, step, step * K, K, bias, 0};
}

// Prefetches that walk through the weights that come next while those of now are used.
struct Ahead {
  const char* p;
  int64_t step;
};

// What is added to the sums: rows `stride` apart, or nothing.
template <class T>
struct Start {
  const T* p;
  int64_t stride;
};

// out[R][S][W][kLanes] = a[R][K] * weights + start; rows of out are `stride` apart, streams of weights `stream`, their
// steps `step`. ByColumns: rows of a are columns in memory, where lda leads from k to k.
template <class T, int R, int S, int W, bool ByColumns>
__attribute__((noinline)) static void multiply_tile(const T* a, int64_t lda, const T* w, int64_t step, int64_t stream,
                                                    int64_t K, Start<T> start, T* out, int64_t stride, Ahead ahead) {
  constexpr int L = kLanes<T>, N = S * W;
  const auto at = [&](int r, int64_t k) { return ByColumns ? a[k * lda + r] : a[r * lda + k]; };
  Vec<T> acc[R][N];
  FUSEDRNN_EACH(r, R) FUSEDRNN_EACH(n, N) acc[r][n] = Vec<T>{};
#if !defined(__clang__)
#pragma GCC unroll 2
#endif
  for (int64_t k = 0; k < K; ++k) {
    if constexpr (kManyRegisters || N < R) {
      Vec<T> b[N];
      FUSEDRNN_EACH(s, S) FUSEDRNN_EACH(i, W) b[s * W + i] = load(w + s * stream + i * L);
      FUSEDRNN_EACH(r, R) {
        const Vec<T> av = broadcast(at(r, k));
        FUSEDRNN_EACH(n, N) acc[r][n] += av * b[n];
      }
    } else {  // too few registers for the weights: hold the rows instead
      Vec<T> av[R];
      FUSEDRNN_EACH(r, R) av[r] = broadcast(at(r, k));
      FUSEDRNN_EACH(s, S) FUSEDRNN_EACH(i, W) {
        const Vec<T> b = load(w + s * stream + i * L);
        FUSEDRNN_EACH(r, R) acc[r][s * W + i] += av[r] * b;
      }
    }
    w += step;
    if constexpr (R > 2) {
      __builtin_prefetch(ahead.p, 0, 2);
      ahead.p += ahead.step;
    }
  }
  if (start.p) FUSEDRNN_EACH(r, R) FUSEDRNN_EACH(n, N) acc[r][n] += load(start.p + r * start.stride + n * L);
  FUSEDRNN_EACH(r, R) FUSEDRNN_EACH(n, N) store(out + r * stride + n * L, acc[r][n]);
}

// f(Int<rows>) for 1 <= rows <= R.
template <int R, class F>
FUSEDRNN_INLINE void with_rows(int rows, const F& f) {
  if (rows == R)
    f(Int<R>{});
  else if constexpr (R > 1)
    with_rows<R - 1>(rows, f);
}

// f(first stream, Int<streams>) until `count` streams are done, S at a time.
template <int S, class F>
FUSEDRNN_INLINE void with_streams(int count, const F& f) {
  int s = 0;
  for (; s + S <= count; s += S) f(s, Int<S>{});
  if constexpr (S > 1)
    if (s < count) with_streams<(S > 4 ? S / 2 : S - 1)>(count - s, [&](int first, auto n) { f(s + first, n); });
}

// Rows are cut into blocks of nearly equal height, since a block of one row costs as much time as one of three.
struct Blocks {
  int64_t first, rows, count;
  Blocks(int64_t r0, int64_t r1, int most) : first(r0), rows(r1 - r0), count((r1 - r0 + most - 1) / most) {}
  FUSEDRNN_INLINE int64_t begin(int64_t i) const { return first + rows * i / count; }
  FUSEDRNN_INLINE int height(int64_t i) const { return int(begin(i + 1) - begin(i)); }
};

// All rows of `units` panels from `tile` on.
template <class T, int G, int R, int S, bool ByColumns, class Epilogue>
FUSEDRNN_INLINE void sweep_rows(const Product<T>& p, const Blocks& blocks, int64_t tile, int units, bool last, T* out,
                                const Epilogue& epilogue) {
  constexpr int L = kLanes<T>, W = kWidth<G>;
  const int64_t stride = units * G * L;
  const int streams = units * G / W;
  const T* weights = p.weights + tile * (G / W) * p.stream;
  const T* bias = p.bias ? p.bias + tile * G * L : nullptr;
  constexpr int kTiles = Epilogue::kTiles;
  constexpr int64_t in_cache = kFirstLevel / (S * W * L * int64_t(sizeof(T)));
  constexpr int64_t longest = ByColumns ? kShort : kDepth;
  constexpr int64_t depth = kTiles > 1 && in_cache < longest ? in_cache : longest;
  const int64_t cuts = (p.K + depth - 1) / depth, pieces = cuts > 1 ? cuts : p.K > kShort ? 2 : 1;
  // The prefetches of one sweep cover the panels that follow, where they are packed.
  const int64_t calls = blocks.count * ((streams + S - 1) / S);
  last = last || p.step != W * L;
  Ahead ahead{reinterpret_cast<const char*>(last ? weights : weights + streams * p.stream),
              last ? 0 : (int64_t(sizeof(T)) * units * G * L + calls - 1) / calls};
  for (int64_t i0 = 0; i0 < blocks.count; i0 += kTiles) {
    const int64_t i1 = i0 + kTiles < blocks.count ? i0 + kTiles : blocks.count, r0 = blocks.begin(i0);
    const auto finish = [&](int64_t r, int rows) {
      for (int u = 0; u < units; ++u) epilogue.apply(r, rows, tile + u, out + (r - r0) * stride + u * G * L, stride);
    };
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t k0 = p.K * piece / pieces, k1 = p.K * (piece + 1) / pieces;
      with_streams<S>(streams, [&](int s, auto count) {
        const bool final = piece == pieces - 1 && s + count.value == streams;
        for (int64_t i = i0; i < i1; ++i) {
          const int64_t r = blocks.begin(i);
          if (final) epilogue.touch(r, blocks.height(i), tile, units);
          with_rows<R>(blocks.height(i), [&](auto height) {
            T* to = out + (r - r0) * stride + s * W * L;
            const Start<T> start = piece > 0 ? Start<T>{to, stride} : Start<T>{bias ? bias + s * W * L : bias, 0};
            constexpr int h = height.value;
            const T* a = p.a + r * p.lda + (ByColumns ? (p.k0 + k0) * h : k0);
            multiply_tile<T, h, count.value, W, ByColumns>(a, ByColumns ? h : p.lda,
                                                           weights + s * p.stream + k0 * p.step, p.step, p.stream,
                                                           k1 - k0, start, to, stride, ahead);
          });
          if (final && Epilogue::kByTile) finish(r, blocks.height(i));
          ahead.p += ahead.step * (k1 - k0);
        }
      });
    }
    if (!Epilogue::kByTile) finish(r0, int(blocks.begin(i1) - r0));
  }
}

// The first shape that serves a number of rows.
template <int W>
constexpr int shape_for(int64_t rows) {
  int i = 0;
  while (rows > kShapes<W>[i].most_rows) ++i;
  return i;
}

// Where sweep() cuts the rows.
template <class T, int G>
static Blocks tiles_of(int64_t r0, int64_t r1) {
  return Blocks(r0, r1, kShapes<kWidth<G>>[shape_for<kWidth<G>>(r1 - r0)].rows);
}

template <class T, int G, int I, bool ByColumns, class Epilogue>
FUSEDRNN_INLINE void sweep_shape(const Product<T>& p, int64_t r0, int64_t r1, int64_t t0, int64_t t1,
                                 const Epilogue& epilogue) {
  constexpr int W = kWidth<G>;
  constexpr TileShape shape = kShapes<W>[I];
  if constexpr (shape.most_rows != kAnyRows)
    if (r1 - r0 > shape.most_rows) return sweep_shape<T, G, I + 1, ByColumns>(p, r0, r1, t0, t1, epilogue);
  constexpr int vectors = shape.streams * W > kVectorsAtATime ? shape.streams * W : kVectorsAtATime;
  constexpr int units = vectors / G > 1 ? vectors / G : 1;
  alignas(64) T out[Epilogue::kTiles * shape.rows * units * G * kLanes<T>];
  const Blocks blocks(r0, r1, shape.rows);
  for (int64_t t = t0; t < t1; t += units)
    sweep_rows<T, G, shape.rows, shape.streams, ByColumns>(p, blocks, t, int(t1 - t < units ? t1 - t : units),
                                                           t + units >= t1, out, epilogue);
}

// epilogue(rows, panels) for rows r0..r1 and panels t0..t1.
template <class T, int G, bool ByColumns = false, class Epilogue>
static void sweep(const Product<T>& p, int64_t r0, int64_t r1, int64_t t0, int64_t t1, const Epilogue& epilogue) {
  if (r0 < r1) sweep_shape<T, G, 0, ByColumns>(p, r0, r1, t0, t1, epilogue);
}

}  // namespace
}  // namespace fusedrnn
