// What unit.cuh has, for sequences with masks: the same names, told apart by their arguments. A state is made what the
// next step begins with by the step before it, so that kernels multiply it as it is; a gradient is cut by the step that
// takes it.
#pragma once
#include "unit.cuh"

namespace fusedrnn {
namespace cuda {

// None where there is no step t.
template <class A>
FUSEDRNN_DEVICE RowFlags flags_of(const A& a, int64_t t, int64_t b) {
  return t >= 0 && t < a.steps ? a.masks.flags[t * a.B + b] : RowFlags(0);
}

// ---------------------------------------------------------------------------------------------- forward

template <class Cell, class T>
FUSEDRNN_DEVICE State<Compute<T>> initial_state(const MaskedForward<T>& a, int64_t b, int64_t j) {
  if (flags_of(a, step_of(0, a.steps, a.reverse), b) & kZeroed) return {0, 0};
  return initial_state<Cell>(static_cast<const Forward<T>&>(a), b, j);
}

template <class Cell, class T>
struct MaskedProjection : Projection<Cell, T> {  // without values where the row is idle
  bool idle, zeroed_next;
};

template <class Cell, class T>
FUSEDRNN_DEVICE MaskedProjection<Cell, T> load_projection(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j) {
  MaskedProjection<Cell, T> x;
  x.idle = flags_of(a, t, b) & kIdle, x.zeroed_next = flags_of(a, a.reverse ? t - 1 : t + 1, b) & kZeroed;
  if (x.idle) return x;
  const Masks::Place at = a.masks.place(t, b);
  static_cast<Projection<Cell, T>&>(x) = load_projection<Cell>(static_cast<const Forward<T>&>(a), at.t, at.b, j);
  return x;
}

template <class Cell, class T>
FUSEDRNN_DEVICE void run_unit(const MaskedProjection<Cell, T>& x, const Biases<Cell, T>& bias,
                              const Compute<T> (&product)[Cell::kGates], State<Compute<T>>& state,
                              Compute<T> (&saved)[kSavedSlots<Cell>]) {
  if (!x.idle) run_unit<Cell, T>(static_cast<const Projection<Cell, T>&>(x), bias, product, state, saved);
}

// What the step that run_unit ran leaves in memory: zeros where it was none.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_unit(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j,
                                const MaskedProjection<Cell, T>& x, const State<Compute<T>>& state,
                                const Compute<T> (&saved)[kSavedSlots<Cell>]) {
  const Masks::Place at = a.masks.place(t, b);
  if (!x.idle) return store_unit<Cell, T>(a, at.t, at.b, j, state, saved);
  if (a.masks.offsets) return;
  const Compute<T> nothing[kSavedSlots<Cell>] = {};
  store_unit<Cell, T>(a, at.t, at.b, j, {0, 0}, nothing);
}

// Both; the state is then what the next step begins with.
template <class Cell, class T>
FUSEDRNN_DEVICE void forward_unit(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j,
                                  const MaskedProjection<Cell, T>& x, const Biases<Cell, T>& bias,
                                  const Compute<T> (&product)[Cell::kGates], State<Compute<T>>& state) {
  Compute<T> saved[kSavedSlots<Cell>];
  run_unit<Cell, T>(x, bias, product, state, saved);
  store_unit<Cell, T>(a, t, b, j, x, state, saved);
  if (x.zeroed_next) state = {0, 0};
}

// ---------------------------------------------------------------------------------------------- backward

template <class Cell, class T>
struct MaskedKept : Kept<Cell, T> {  // without values where the row is idle
  RowFlags now, next;                // next: of the step run after it, from which the gradient comes
  Compute<T> dc;
};

template <class Cell, class T>
FUSEDRNN_DEVICE MaskedKept<Cell, T> load_kept(const MaskedBackward<T>& a, int64_t k, int64_t b, int64_t j) {
  MaskedKept<Cell, T> kept;
  const int64_t t = step_of(k, a.steps, a.reverse), before = step_of(k - 1, a.steps, a.reverse);
  kept.now = flags_of(a, t, b), kept.next = flags_of(a, step_of(k + 1, a.steps, a.reverse), b);
  if (kept.now & kIdle) return kept;
  const Masks::Place at = a.masks.place(t, b), from = a.masks.place(before, b);
  const bool zeroed = kept.now & kZeroed, first = k == 0 || flags_of(a, before, b) & kIdle;
  const auto previous = [&](const Steps<const T>& states, const T* initial) {
    return zeroed  ? Compute<T>(0)
           : first ? value_or_zero(initial, b * a.H + j)
                   : to_compute(states.at(from.t, from.b)[j]);
  };
  if constexpr (Cell::kSaved > 0) {
    const T* row = a.saved.at(at.t, at.b) + j;
#pragma unroll
    for (int slot = 0; slot < Cell::kSaved; ++slot) kept.saved[slot] = to_compute(row[slot * a.H]);
  }
  if constexpr (Cell::kReadsOutput) kept.step.h = to_compute(a.y.at(at.t, at.b)[j]);
  if constexpr (Cell::kReadsPrevious) kept.step.h_prev = previous(a.y, a.h0);
  if constexpr (Cell::kHasCellState) {
    kept.step.c = to_compute(a.c.at(at.t, at.b)[j]);
    kept.step.c_prev = previous(a.c, a.c0);
    kept.dc = a.dc ? to_compute(a.dc.at(at.t, at.b)[j]) : Compute<T>(0);
  }
  kept.dy = a.dy ? to_compute(a.dy.at(at.t, at.b)[j]) : Compute<T>(0);
  return kept;
}

// What comes from a step with these flags, through the product and around it.
template <class F>
FUSEDRNN_DEVICE void cut_gradient(RowFlags flags, F& product, StateGrad<F>& grad) {
  if (flags & (kZeroed | kDetached)) grad = {0, 0};
  if (flags) product = 0;
}

template <class Cell, class T>
FUSEDRNN_DEVICE void run_unit_backward(const MaskedKept<Cell, T>& kept, Compute<T> product, StateGrad<Compute<T>>& grad,
                                       Compute<T> (&delta)[Cell::kDeltas]) {
  cut_gradient(kept.next, product, grad);
  if (kept.now & kIdle) {
    grad.dh += product;
#pragma unroll
    for (int slot = 0; slot < Cell::kDeltas; ++slot) delta[slot] = 0;
    return;
  }
  if constexpr (Cell::kHasCellState) grad.dc += kept.dc;
  run_unit_backward<Cell, T>(static_cast<const Kept<Cell, T>&>(kept), product, grad, delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void store_deltas(const MaskedBackward<T>& a, int64_t t, int64_t b, int64_t j,
                                  const MaskedKept<Cell, T>& kept, const Compute<T> (&delta)[Cell::kDeltas]) {
  if (kept.now & kIdle && a.masks.offsets) return;
  const Masks::Place at = a.masks.place(t, b);
  store_deltas<Cell, T>(a, at.t, at.b, j, delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void backward_unit(const MaskedBackward<T>& a, int64_t t, int64_t b, int64_t j,
                                   const MaskedKept<Cell, T>& kept, Compute<T> product, StateGrad<Compute<T>>& grad,
                                   Compute<T> (&delta)[Cell::kDeltas]) {
  run_unit_backward<Cell, T>(kept, product, grad, delta);
  store_deltas<Cell, T>(a, t, b, j, kept, delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void store_initial_gradient(const MaskedBackward<T>& a, int64_t b, int64_t j, Compute<T> product,
                                            StateGrad<Compute<T>> grad) {
  cut_gradient(flags_of(a, step_of(0, a.steps, a.reverse), b), product, grad);
  store_initial_gradient<Cell>(static_cast<const Backward<T>&>(a), b, j, product, grad);
}

}  // namespace cuda
}  // namespace fusedrnn
