// What unit.cuh has, for sequences with masks: the same names, told apart by their arguments. A state is made what the
// next step begins with by the step before it, so that kernels multiply it as it is; a gradient is cut by the step that
// takes it. Flags are loaded where they are needed, again and again: registers are scarcer.
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

// Of step t: whether the row runs it, and whether the step run after it begins with zeros.
struct ForwardTurn {
  bool idle, zeroed_next;
};
template <class Cell, class T>
FUSEDRNN_DEVICE ForwardTurn turn_of(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t) {
  return {(flags_of(a, t, b) & kIdle) != 0, (flags_of(a, a.reverse ? t - 1 : t + 1, b) & kZeroed) != 0};
}

// Nothing where the row is idle.
template <class Cell, class T>
FUSEDRNN_DEVICE Projection<Cell, T> load_projection(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j) {
  if (flags_of(a, t, b) & kIdle) return {};
  const Masks::Place at = a.masks.place(t, b);
  return load_projection<Cell>(static_cast<const Forward<T>&>(a), at.t, at.b, j);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void run_unit(const ForwardTurn& turn, const Projection<Cell, T>& x, const Biases<Cell, T>& bias,
                              const Compute<T> (&product)[Cell::kGates], State<Compute<T>>& state,
                              Compute<T> (&saved)[kSavedSlots<Cell>]) {
  if (!turn.idle) run_unit<Cell, T>(Whole(), x, bias, product, state, saved);
}

// What the step that run_unit ran leaves in memory: zeros where it was none.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_unit(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j, const ForwardTurn& turn,
                                const State<Compute<T>>& state, const Compute<T> (&saved)[kSavedSlots<Cell>]) {
  const Masks::Place at = a.masks.place(t, b);
  if (!turn.idle) return store_unit<Cell, T>(a, at.t, at.b, j, Whole(), state, saved);
  if (a.masks.offsets) return;
  const Compute<T> nothing[kSavedSlots<Cell>] = {};
  store_unit<Cell, T>(a, at.t, at.b, j, Whole(), State<Compute<T>>{0, 0}, nothing);
}

template <class F>
FUSEDRNN_DEVICE State<F> next_state(const ForwardTurn& turn, const State<F>& state) {
  return turn.zeroed_next ? State<F>{0, 0} : state;
}

// All of step t; the state is then what the next step begins with.
template <class Cell, class T>
FUSEDRNN_DEVICE void forward_unit(const MaskedForward<T>& a, int64_t t, int64_t b, int64_t j,
                                  const Projection<Cell, T>& x, const Biases<Cell, T>& bias,
                                  const Compute<T> (&product)[Cell::kGates], State<Compute<T>>& state) {
  const ForwardTurn now{(flags_of(a, t, b) & kIdle) != 0, false};
  Compute<T> saved[kSavedSlots<Cell>];
  run_unit<Cell, T>(now, x, bias, product, state, saved);
  store_unit<Cell, T>(a, t, b, j, now, state, saved);
  // What comes next is asked only now: asked before, a register more spills on sm_120.
  state = next_state(turn_of<Cell>(a, t, b, j), state);
}

// ---------------------------------------------------------------------------------------------- backward

// Of step t, and of the step run after it, from which the gradient comes.
template <class F>
struct BackwardTurn {
  RowFlags now, next;
  F dc;  // that comes in
};
template <class Cell, class T>
FUSEDRNN_DEVICE BackwardTurn<Compute<T>> turn_of(const MaskedBackward<T>& a, int64_t t, int64_t b, int64_t j) {
  BackwardTurn<Compute<T>> turn{flags_of(a, t, b), flags_of(a, a.reverse ? t - 1 : t + 1, b), 0};
  if constexpr (Cell::kHasCellState)
    if (a.dc && !(turn.now & kIdle)) {
      const Masks::Place at = a.masks.place(t, b);
      turn.dc = to_compute(a.dc.at(at.t, at.b)[j]);
    }
  return turn;
}

// Nothing where the row is idle.
template <class Cell, class T>
FUSEDRNN_DEVICE Kept<Cell, T> load_kept(const MaskedBackward<T>& a, int64_t k, int64_t b, int64_t j) {
  Kept<Cell, T> kept{};
  const int64_t t = step_of(k, a.steps, a.reverse), before = step_of(k - 1, a.steps, a.reverse);
  const RowFlags now = flags_of(a, t, b);
  if (now & kIdle) return kept;
  const Masks::Place at = a.masks.place(t, b);
  const bool zeroed = now & kZeroed, first = k == 0 || flags_of(a, before, b) & kIdle;
  const auto previous = [&](const Steps<const T>& states, const T* initial) {
    if (zeroed) return Compute<T>(0);
    if (first) return value_or_zero(initial, b * a.H + j);
    const Masks::Place from = a.masks.place(before, b);
    return to_compute(states.at(from.t, from.b)[j]);
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
FUSEDRNN_DEVICE void run_unit_backward(const BackwardTurn<Compute<T>>& turn, const Kept<Cell, T>& kept,
                                       Compute<T> product, StateGrad<Compute<T>>& grad,
                                       Compute<T> (&delta)[Cell::kDeltas]) {
  cut_gradient(turn.next, product, grad);
  if (turn.now & kIdle) {
    grad.dh += product;
#pragma unroll
    for (int slot = 0; slot < Cell::kDeltas; ++slot) delta[slot] = 0;
    return;
  }
  if constexpr (Cell::kHasCellState) grad.dc += turn.dc;
  run_unit_backward<Cell, T>(Whole(), kept, product, grad, delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void store_deltas(const MaskedBackward<T>& a, int64_t t, int64_t b, int64_t j,
                                  const BackwardTurn<Compute<T>>& turn, const Compute<T> (&delta)[Cell::kDeltas]) {
  if (turn.now & kIdle && a.masks.offsets) return;
  const Masks::Place at = a.masks.place(t, b);
  store_deltas<Cell, T>(a, at.t, at.b, j, Whole(), delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void backward_unit(const MaskedBackward<T>& a, int64_t t, int64_t b, int64_t j,
                                   const Kept<Cell, T>& kept, Compute<T> product, StateGrad<Compute<T>>& grad,
                                   Compute<T> (&delta)[Cell::kDeltas]) {
  const BackwardTurn<Compute<T>> turn = turn_of<Cell>(a, t, b, j);
  run_unit_backward<Cell, T>(turn, kept, product, grad, delta);
  store_deltas<Cell, T>(a, t, b, j, turn, delta);
}

template <class Cell, class T>
FUSEDRNN_DEVICE void store_initial_gradient(const MaskedBackward<T>& a, int64_t b, int64_t j, Compute<T> product,
                                            StateGrad<Compute<T>> grad) {
  cut_gradient(flags_of(a, step_of(0, a.steps, a.reverse), b), product, grad);
  store_initial_gradient<Cell>(static_cast<const Backward<T>&>(a), b, j, product, grad);
}

}  // namespace cuda
}  // namespace fusedrnn
