// What happens to a tile after the product: the gate math, on a group of rows of one panel at a time.
#pragma once
#include "../cells/cell.h"
#include "activations.h"
#include "kernels.h"
#include "pack.h"

namespace fusedrnn {
namespace {

// Rows worked on side by side: enough chains to fill the pipelines, few enough that they stay in registers.
constexpr int kGroup = kRegisters == 32 ? 6 : 4;

// A matrix seen at one step: row b is at p + b * stride.
template <class T>
struct Rows {
  T* p;
  int64_t stride;
  FUSEDRNN_INLINE T* at(int64_t b, int64_t column) const { return p + b * stride + column; }
};

// Memory of `valid` lanes: all of them (Full), or the first few of the last panel.
template <bool Full>
struct Edge {
  int valid;
  template <class T>
  FUSEDRNN_INLINE Vec<T> get(const T* p) const {
    return Full ? load(p) : load_first(p, valid);
  }
  template <class T>
  FUSEDRNN_INLINE void put(T* p, Vec<T> v) const {
    Full ? store(p, v) : store_first(p, v, valid);
  }
};

// Asks for some panels of a row. Where rows are not aligned to cache lines, for the line in which each panel ends: the
// one in which it begins was asked for with the panel before.
template <class T>
FUSEDRNN_INLINE void touch_panels(const T* row, int64_t tile, int units) {
  for (int u = 1; u <= units; ++u) __builtin_prefetch(row + (tile + u) * kLanes<T> - 1);
}

// Cuts rows into groups, and tells the last panel from the full ones. Row i of the product is at product + i * stride.
template <class T, class Step>
FUSEDRNN_INLINE void in_groups(const Step& step, int64_t row, int rows, int64_t unit, int64_t H, const T* product,
                               int64_t stride) {
  const Blocks groups(0, rows, kGroup);
  const auto run = [&](auto edge) {
    for (int64_t i = 0; i < groups.count; ++i)
      with_rows<kGroup>(groups.height(i), [&](auto height) {
        step.template group<height.value>(row + groups.begin(i), unit, product + groups.begin(i) * stride, stride,
                                          edge);
      });
  };
  if (H - unit >= kLanes<T>)
    run(Edge<true>{kLanes<T>});
  else
    run(Edge<false>{int(H - unit)});
}

// One step forward. h lives in compact padded buffers, and so does c where the step belongs to a sequence; y, c and
// the saved values go to the caller's memory. Without y, only what backward needs is written.
template <class Cell, class T>
struct ForwardStep {
  static constexpr int kTiles = kTilesOfGates;
  static constexpr bool kByTile = true;

  int64_t H;
  Rows<const T> x;  // projections: of the rows, or of tokens
  Rows<const int64_t> tokens;
  const T* bias;  // b_ih, packed
  Rows<const T> h_prev, c_prev;
  Rows<T> h_next, c_next;  // padded
  Rows<T> y, c, saved;     // or null

  FUSEDRNN_INLINE const T* projection(int64_t row) const { return x.at(tokens.p ? *tokens.at(row, 0) : row, 0); }

  FUSEDRNN_INLINE void touch(int64_t row, int R, int64_t tile, int units) const {
    for (int i = 0; i < R; ++i) {
      for (int g = 0; g < Cell::kGates; ++g) touch_panels(projection(row + i) + g * H, tile, units);
      if (y.p) touch_panels(y.at(row + i, 0), tile, units);
    }
  }

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    in_groups(*this, row, rows, tile * kLanes<T>, H, product, stride);
  }

  // product: [P][G][kLanes], rows `step` apart.
  template <int P, class E>
  FUSEDRNN_INLINE void group(int64_t row, int64_t unit, const T* product, int64_t step, E edge) const {
    constexpr int L = kLanes<T>, G = Cell::kGates;
    using F = Pack<T, P>;
    F in[G], r[G], values[Cell::kSaved ? Cell::kSaved : 1];
    State<F> state;
    const T* from[P];
    FUSEDRNN_EACH(i, P) from[i] = projection(row + i) + unit;
    FUSEDRNN_EACH(g, G) {
      const Vec<T> b = load(bias + unit * G + g * L);
      FUSEDRNN_EACH(i, P) in[g].v[i] = edge.get(from[i] + g * H) + b;
      FUSEDRNN_EACH(i, P) r[g].v[i] = load(product + i * step + g * L);
    }
    FUSEDRNN_EACH(i, P) state.h.v[i] = edge.get(h_prev.at(row + i, unit));
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) state.c.v[i] = edge.get(c_prev.at(row + i, unit));
    Cell::forward(in, r, state, values);
    if (saved.p)
      FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) edge.put(saved.at(row + i, k * H + unit), values[k].v[i]);
    if (!y.p) return;
    FUSEDRNN_EACH(i, P) store(h_next.at(row + i, unit), state.h.v[i]);
    FUSEDRNN_EACH(i, P) edge.put(y.at(row + i, unit), state.h.v[i]);
    if constexpr (Cell::kHasCellState) {
      FUSEDRNN_EACH(i, P) store(c_next.at(row + i, unit), state.c.v[i]);
      if (c.p) FUSEDRNN_EACH(i, P) edge.put(c.at(row + i, unit), state.c.v[i]);
    }
  }
};

// One step backward: the product is the gradient that reaches h_t through w_hh from the step run after it.
template <class Cell, class T>
struct BackwardStep {
  static constexpr int kTiles = kTilesOfGates;
  static constexpr bool kByTile = false;  // it touches so much memory that the next tiles would miss their weights

  int64_t H;
  Rows<const T> saved, y, h_prev, c, c_prev;
  Rows<const T> dy, dc_out;   // gradients of y and c, or null
  Rows<const uint8_t> reset;  // where not 0, the product does not count; or null
  bool use_direct;
  Rows<T> delta;
  Rows<T> direct, dc;  // padded; direct is the part of dh that does not pass w_hh

  FUSEDRNN_INLINE void touch(int64_t row, int R, int64_t tile, int units) const {
    for (int i = 0; i < R; ++i)
      for (int k = 0; k < Cell::kSaved; ++k) touch_panels(saved.at(row + i, k * H), tile, units);
  }

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    in_groups(*this, row, rows, tile * kLanes<T>, H, product, stride);
  }

  template <int P, class E>
  FUSEDRNN_INLINE void group(int64_t row, int64_t unit, const T* product, int64_t stride, E edge) const {
    using F = Pack<T, P>;
    F values[Cell::kSaved ? Cell::kSaved : 1], d[Cell::kDeltas];
    Step<F> step;
    StateGrad<F> grad;
    FUSEDRNN_EACH(i, P) grad.dh.v[i] = load(product + i * stride);
    if (reset.p) FUSEDRNN_EACH(i, P) if (*reset.at(row + i, 0)) grad.dh.v[i] = Vec<T>{};
    if (dy.p) FUSEDRNN_EACH(i, P) grad.dh.v[i] += edge.get(dy.at(row + i, unit));
    if (use_direct) FUSEDRNN_EACH(i, P) grad.dh.v[i] += load(direct.at(row + i, unit));
    FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) values[k].v[i] = edge.get(saved.at(row + i, k * H + unit));
    if constexpr (Cell::kReadsOutput) FUSEDRNN_EACH(i, P) step.h.v[i] = edge.get(y.at(row + i, unit));
    if constexpr (Cell::kReadsPrevious) FUSEDRNN_EACH(i, P) step.h_prev.v[i] = edge.get(h_prev.at(row + i, unit));
    if constexpr (Cell::kHasCellState) {
      FUSEDRNN_EACH(i, P) step.c.v[i] = edge.get(c.at(row + i, unit));
      FUSEDRNN_EACH(i, P) step.c_prev.v[i] = edge.get(c_prev.at(row + i, unit));
      FUSEDRNN_EACH(i, P) grad.dc.v[i] = load(dc.at(row + i, unit));
      if (dc_out.p) FUSEDRNN_EACH(i, P) grad.dc.v[i] += edge.get(dc_out.at(row + i, unit));
    }
    Cell::backward(values, step, grad, d);
    FUSEDRNN_EACH(k, Cell::kDeltas) FUSEDRNN_EACH(i, P) edge.put(delta.at(row + i, k * H + unit), d[k].v[i]);
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) store(dc.at(row + i, unit), grad.dc.v[i]);
    if constexpr (Cell::kKeepsDirect) FUSEDRNN_EACH(i, P) store(direct.at(row + i, unit), grad.dh.v[i]);
  }
};

// c = product, or c += product, of G gates of N columns.
template <class T, int G = 1>
struct StoreProduct {
  static constexpr int kTiles = kTilesOfSums;
  static constexpr bool kByTile = true;

  Rows<T> c;
  int64_t N;
  bool add;

  FUSEDRNN_INLINE void touch(int64_t row, int R, int64_t tile, int units) const {
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) touch_panels(c.at(row + i, g * N), tile, units);
  }

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    const int64_t column = tile * kLanes<T>, valid = N - column;
    for (int i = 0; i < rows; ++i)
      for (int g = 0; g < G; ++g) {
        T* to = c.at(row + i, g * N + column);
        Vec<T> v = load(product + i * stride + g * kLanes<T>);
        if (add) v += load_up_to(to, valid);
        store_up_to(to, v, valid);
      }
  }
};

}  // namespace
}  // namespace fusedrnn
