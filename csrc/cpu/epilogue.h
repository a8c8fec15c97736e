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

// Splits a block of rows into groups, and the last panel from the full ones.
template <int R, class Derived>
FUSEDRNN_INLINE void in_groups(const Derived& e, int64_t row, int64_t unit, int64_t valid, int lanes) {
  constexpr int first = R <= kGroup ? R : (R + 1) / 2;
  if (valid >= lanes)
    e.template group<first>(row, 0, unit, Edge<true>{lanes});
  else
    e.template group<first>(row, 0, unit, Edge<false>{int(valid)});
  if constexpr (R > first) {
    if (valid >= lanes)
      e.template group<R - first>(row, first, unit, Edge<true>{lanes});
    else
      e.template group<R - first>(row, first, unit, Edge<false>{int(valid)});
  }
}

template <class T, int S>
FUSEDRNN_INLINE void touch_rows(const Rows<T>& m, int64_t row, int R, int64_t unit, int64_t H) {
  for (int i = 0; i < R; ++i)
    for (int s = 0; s < S; ++s) __builtin_prefetch(m.at(row + i, s * H + unit));
}

// One step forward. The states h and c live in compact padded buffers; y, c and the saved values go to the caller's.
template <class Cell, class T>
struct ForwardStep {
  int64_t H;
  Rows<T> x;                      // in: projections; out: saved values, when save
  const T* bias;                  // b_ih, packed
  Rows<T> h_prev, h_next, c_now;  // padded
  Rows<T> y, c;
  bool save;

  FUSEDRNN_INLINE void touch(int64_t row, int R, int64_t tile) const {
    touch_rows<T, Cell::kGates>(x, row, R, tile * kLanes<T>, H);
  }

  template <int R, int N>
  FUSEDRNN_INLINE void apply(int64_t row, int64_t tile, const T* product) const {
    const int64_t unit = tile * kLanes<T>;
    in_groups<R>(With<N>{*this, product}, row, unit, H - unit, kLanes<T>);
  }

  template <int N>
  struct With {
    const ForwardStep& s;
    const T* product;  // [R][N][kLanes]

    template <int P, class E>
    FUSEDRNN_INLINE void group(int64_t row, int first, int64_t unit, E edge) const {
      constexpr int L = kLanes<T>, G = Cell::kGates;
      using F = Pack<T, P>;
      F x[G], r[G], saved[Cell::kSaved ? Cell::kSaved : 1];
      State<F> state;
      row += first;
      FUSEDRNN_EACH(g, G) {
        const Vec<T> b = load(s.bias + unit * G + g * L);
        FUSEDRNN_EACH(i, P) x[g].v[i] = edge.get(s.x.at(row + i, g * s.H + unit)) + b;
        FUSEDRNN_EACH(i, P) r[g].v[i] = load(product + ((first + i) * N + g) * L);
      }
      FUSEDRNN_EACH(i, P) state.h.v[i] = load(s.h_prev.at(row + i, unit));
      if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) state.c.v[i] = load(s.c_now.at(row + i, unit));
      Cell::forward(x, r, state, saved);
      FUSEDRNN_EACH(i, P) store(s.h_next.at(row + i, unit), state.h.v[i]);
      FUSEDRNN_EACH(i, P) edge.put(s.y.at(row + i, unit), state.h.v[i]);
      if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) store(s.c_now.at(row + i, unit), state.c.v[i]);
      if (!s.save) return;
      FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) edge.put(s.x.at(row + i, k * s.H + unit), saved[k].v[i]);
      if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) edge.put(s.c.at(row + i, unit), state.c.v[i]);
    }
  };
};

// One step backward: the product is the gradient that reaches h_t through w_hh from the step run after it.
template <class Cell, class T>
struct BackwardStep {
  int64_t H;
  Rows<const T> saved, y, h_prev, c, c_prev, dy;
  bool has_dy, use_direct;
  Rows<T> delta;
  Rows<T> direct, dc;  // padded; direct is the part of dh that does not pass w_hh

  FUSEDRNN_INLINE void touch(int64_t row, int R, int64_t tile) const {
    touch_rows<const T, Cell::kSaved>(saved, row, R, tile * kLanes<T>, H);
  }

  template <int R, int N>
  FUSEDRNN_INLINE void apply(int64_t row, int64_t tile, const T* product) const {
    const int64_t unit = tile * kLanes<T>;
    in_groups<R>(With<N>{*this, product}, row, unit, H - unit, kLanes<T>);
  }

  template <int N>
  struct With {
    const BackwardStep& s;
    const T* product;

    template <int P, class E>
    FUSEDRNN_INLINE void group(int64_t row, int first, int64_t unit, E edge) const {
      using F = Pack<T, P>;
      F saved[Cell::kSaved ? Cell::kSaved : 1], delta[Cell::kDeltas];
      Step<F> step;
      StateGrad<F> grad;
      row += first;
      FUSEDRNN_EACH(i, P) grad.dh.v[i] = load(product + (first + i) * N * kLanes<T>);
      if (s.has_dy) FUSEDRNN_EACH(i, P) grad.dh.v[i] += edge.get(s.dy.at(row + i, unit));
      if (s.use_direct) FUSEDRNN_EACH(i, P) grad.dh.v[i] += load(s.direct.at(row + i, unit));
      FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) {
        saved[k].v[i] = edge.get(s.saved.at(row + i, k * s.H + unit));
      }
      if constexpr (Cell::kReadsOutput) FUSEDRNN_EACH(i, P) step.h.v[i] = edge.get(s.y.at(row + i, unit));
      if constexpr (Cell::kReadsPrevious) FUSEDRNN_EACH(i, P) step.h_prev.v[i] = edge.get(s.h_prev.at(row + i, unit));
      if constexpr (Cell::kHasCellState) {
        FUSEDRNN_EACH(i, P) step.c.v[i] = edge.get(s.c.at(row + i, unit));
        FUSEDRNN_EACH(i, P) step.c_prev.v[i] = edge.get(s.c_prev.at(row + i, unit));
        FUSEDRNN_EACH(i, P) grad.dc.v[i] = load(s.dc.at(row + i, unit));
      }
      Cell::backward(saved, step, grad, delta);
      FUSEDRNN_EACH(k, Cell::kDeltas) FUSEDRNN_EACH(i, P) edge.put(s.delta.at(row + i, k * s.H + unit), delta[k].v[i]);
      if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) store(s.dc.at(row + i, unit), grad.dc.v[i]);
      if constexpr (Cell::kKeepsDirect) FUSEDRNN_EACH(i, P) store(s.direct.at(row + i, unit), grad.dh.v[i]);
    }
  };
};

// The end of backward: dh0 = product + direct.
template <class T>
struct StoreStateGrad {
  int64_t H;
  Rows<T> dh0, direct;
  bool use_direct;

  FUSEDRNN_INLINE void touch(int64_t, int, int64_t) const {}

  template <int R, int N>
  FUSEDRNN_INLINE void apply(int64_t row, int64_t tile, const T* product) const {
    constexpr int L = kLanes<T>;
    const int64_t unit = tile * L, valid = H - unit;
    for (int i = 0; i < R; ++i) {
      Vec<T> v = load(product + i * N * L);
      if (use_direct) v += load(direct.at(row + i, unit));
      store_up_to(dh0.at(row + i, unit), v, valid);
    }
  }
};

}  // namespace
}  // namespace fusedrnn
