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

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    in_groups(*this, row, rows, tile * kLanes<T>, H, product, stride);
  }

  // product: [P][G][kLanes], rows `step` apart.
  template <int P, class E>
  FUSEDRNN_INLINE void group(int64_t row, int64_t unit, const T* product, int64_t step, E edge) const {
    constexpr int L = kLanes<T>, G = Cell::kGates;
    using F = Pack<T, P>;
    F in[G], r[G], saved[Cell::kSaved ? Cell::kSaved : 1];
    State<F> state;
    FUSEDRNN_EACH(g, G) {
      const Vec<T> b = load(bias + unit * G + g * L);
      FUSEDRNN_EACH(i, P) in[g].v[i] = edge.get(x.at(row + i, g * H + unit)) + b;
      FUSEDRNN_EACH(i, P) r[g].v[i] = load(product + i * step + g * L);
    }
    FUSEDRNN_EACH(i, P) state.h.v[i] = load(h_prev.at(row + i, unit));
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) state.c.v[i] = load(c_now.at(row + i, unit));
    Cell::forward(in, r, state, saved);
    FUSEDRNN_EACH(i, P) store(h_next.at(row + i, unit), state.h.v[i]);
    FUSEDRNN_EACH(i, P) edge.put(y.at(row + i, unit), state.h.v[i]);
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) store(c_now.at(row + i, unit), state.c.v[i]);
    if (!save) return;
    FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) edge.put(x.at(row + i, k * H + unit), saved[k].v[i]);
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) edge.put(c.at(row + i, unit), state.c.v[i]);
  }
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
    if (has_dy) FUSEDRNN_EACH(i, P) grad.dh.v[i] += edge.get(dy.at(row + i, unit));
    if (use_direct) FUSEDRNN_EACH(i, P) grad.dh.v[i] += load(direct.at(row + i, unit));
    FUSEDRNN_EACH(k, Cell::kSaved) FUSEDRNN_EACH(i, P) values[k].v[i] = edge.get(saved.at(row + i, k * H + unit));
    if constexpr (Cell::kReadsOutput) FUSEDRNN_EACH(i, P) step.h.v[i] = edge.get(y.at(row + i, unit));
    if constexpr (Cell::kReadsPrevious) FUSEDRNN_EACH(i, P) step.h_prev.v[i] = edge.get(h_prev.at(row + i, unit));
    if constexpr (Cell::kHasCellState) {
      FUSEDRNN_EACH(i, P) step.c.v[i] = edge.get(c.at(row + i, unit));
      FUSEDRNN_EACH(i, P) step.c_prev.v[i] = edge.get(c_prev.at(row + i, unit));
      FUSEDRNN_EACH(i, P) grad.dc.v[i] = load(dc.at(row + i, unit));
    }
    Cell::backward(values, step, grad, d);
    FUSEDRNN_EACH(k, Cell::kDeltas) FUSEDRNN_EACH(i, P) edge.put(delta.at(row + i, k * H + unit), d[k].v[i]);
    if constexpr (Cell::kHasCellState) FUSEDRNN_EACH(i, P) store(dc.at(row + i, unit), grad.dc.v[i]);
    if constexpr (Cell::kKeepsDirect) FUSEDRNN_EACH(i, P) store(direct.at(row + i, unit), grad.dh.v[i]);
  }
};

// The end of backward: dh0 = product + direct.
template <class T>
struct StoreStateGrad {
  int64_t H;
  Rows<T> dh0, direct;
  bool use_direct;

  FUSEDRNN_INLINE void touch(int64_t, int, int64_t) const {}

  FUSEDRNN_INLINE void apply(int64_t row, int rows, int64_t tile, const T* product, int64_t stride) const {
    const int64_t unit = tile * kLanes<T>, valid = H - unit;
    for (int i = 0; i < rows; ++i) {
      Vec<T> v = load(product + i * stride);
      if (use_direct) v += load(direct.at(row + i, unit));
      store_up_to(dh0.at(row + i, unit), v, valid);
    }
  }
};

}  // namespace
}  // namespace fusedrnn
