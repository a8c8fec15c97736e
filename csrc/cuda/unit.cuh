// What one thread does for one hidden unit of one batch row in one step, once the recurrent product is there. All
// kernels are made of this; they differ in how they come by the product.
//
// What a step reads besides the product is loaded by a function of its own (load_*), so that a kernel can ask for it
// before the product and wait for memory while it multiplies. Everything is in Compute<T>: a value is rounded to T when
// it is stored, but states and gradients that a thread carries from step to step are not.
#pragma once
#include "cells.cuh"
#include "kernels.h"

namespace fusedrnn {
namespace cuda {

template <class Cell>
constexpr int kSavedSlots = Cell::kSaved ? Cell::kSaved : 1;  // there is no array of none

// What a mask says of a row in a step, of sequences that have none. Others are in masked_unit.cuh.
struct Whole {};
template <class Cell, class T>
FUSEDRNN_DEVICE Whole turn_of(const Forward<T>&, int64_t, int64_t, int64_t) {
  return {};
}
template <class Cell, class T>
FUSEDRNN_DEVICE Whole turn_of(const Backward<T>&, int64_t, int64_t, int64_t) {
  return {};
}

// What a value of T is, or zero where there is no tensor.
template <class T>
FUSEDRNN_DEVICE Compute<T> value_or_zero(const T* p, int64_t i) {
  return p ? to_compute(p[i]) : Compute<T>(0);
}

// ---------------------------------------------------------------------------------------------- forward

// Of unit j: the same in every step.
template <class Cell, class T>
struct Biases {
  Compute<T> input[Cell::kGates], recurrent[Cell::kGates];
};

template <class Cell, class T>
FUSEDRNN_DEVICE Biases<Cell, T> load_biases(const Forward<T>& a, int64_t j) {
  Biases<Cell, T> b;
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    b.input[g] = value_or_zero(a.b_ih, g * a.H + j);
    b.recurrent[g] = value_or_zero(a.b_hh, g * a.H + j);
  }
  return b;
}

// The input projection of step t, row b, unit j.
template <class Cell, class T>
struct Projection {
  Compute<T> gate[Cell::kGates];
};

template <class Cell, class T>
FUSEDRNN_DEVICE Projection<Cell, T> load_projection(const Forward<T>& a, int64_t t, int64_t b, int64_t j) {
  Projection<Cell, T> x;
  const T* row = a.x.at(t, b) + j;
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) x.gate[g] = to_compute(row[g * a.H]);
  return x;
}

template <class Cell, class T>
FUSEDRNN_DEVICE State<Compute<T>> initial_state(const Forward<T>& a, int64_t b, int64_t j) {
  State<Compute<T>> state{value_or_zero(a.h0, b * a.H + j), 0};
  if constexpr (Cell::kHasCellState) state.c = value_or_zero(a.c0, b * a.H + j);
  return state;
}

// One step: the product w_hh h without bias, of all gates, and the state before it, which becomes the state after it.
template <class Cell, class T>
FUSEDRNN_DEVICE void run_unit(Whole, Projection<Cell, T> x, const Biases<Cell, T>& bias,
                              const Compute<T> (&product)[Cell::kGates], State<Compute<T>>& state,
                              Compute<T> (&saved)[kSavedSlots<Cell>]) {
  Compute<T> recurrent[Cell::kGates];
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    x.gate[g] += bias.input[g];
    recurrent[g] = product[g] + bias.recurrent[g];
  }
  Cell::forward(x.gate, recurrent, state, saved);
}

// What step t leaves in memory.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_unit(const Forward<T>& a, int64_t t, int64_t b, int64_t j, Whole,
                                const State<Compute<T>>& state, const Compute<T> (&saved)[kSavedSlots<Cell>]) {
  a.y.at(t, b)[j] = from_compute<T>(state.h);
  if constexpr (Cell::kHasCellState)
    if (a.c) a.c.at(t, b)[j] = from_compute<T>(state.c);
  if constexpr (Cell::kSaved > 0)
    if (a.saved) {
      T* row = a.saved.at(t, b) + j;
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) row[k * a.H] = from_compute<T>(saved[k]);
    }
}

// What the next step begins with.
template <class F>
FUSEDRNN_DEVICE State<F> next_state(Whole, const State<F>& state) {
  return state;
}

// All of step t.
template <class Cell, class T>
FUSEDRNN_DEVICE void forward_unit(const Forward<T>& a, int64_t t, int64_t b, int64_t j, const Projection<Cell, T>& x,
                                  const Biases<Cell, T>& bias, const Compute<T> (&product)[Cell::kGates],
                                  State<Compute<T>>& state) {
  Compute<T> saved[kSavedSlots<Cell>];
  run_unit<Cell, T>(Whole(), x, bias, product, state, saved);
  store_unit<Cell, T>(a, t, b, j, Whole(), state, saved);
}

// After the last step.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_final_state(const Forward<T>& a, int64_t b, int64_t j, const State<Compute<T>>& state) {
  a.h_n[b * a.H + j] = from_compute<T>(state.h);
  if constexpr (Cell::kHasCellState) a.c_n[b * a.H + j] = from_compute<T>(state.c);
}

// ---------------------------------------------------------------------------------------------- backward

// What backward reads of step k (the k-th that forward ran), row b, unit j.
template <class Cell, class T>
struct Kept {
  Compute<T> saved[kSavedSlots<Cell>];
  Step<Compute<T>> step;
  Compute<T> dy;
};

template <class Cell, class T>
FUSEDRNN_DEVICE Kept<Cell, T> load_kept(const Backward<T>& a, int64_t k, int64_t b, int64_t j) {
  Kept<Cell, T> kept;
  const int64_t t = step_of(k, a.steps, a.reverse), before = step_of(k - 1, a.steps, a.reverse);
  if constexpr (Cell::kSaved > 0) {
    const T* row = a.saved.at(t, b) + j;
#pragma unroll
    for (int slot = 0; slot < Cell::kSaved; ++slot) kept.saved[slot] = to_compute(row[slot * a.H]);
  }
  if constexpr (Cell::kReadsOutput) kept.step.h = to_compute(a.y.at(t, b)[j]);
  if constexpr (Cell::kReadsPrevious)
    kept.step.h_prev = k > 0 ? to_compute(a.y.at(before, b)[j]) : value_or_zero(a.h0, b * a.H + j);
  if constexpr (Cell::kHasCellState) {
    kept.step.c = to_compute(a.c.at(t, b)[j]);
    kept.step.c_prev = k > 0 ? to_compute(a.c.at(before, b)[j]) : value_or_zero(a.c0, b * a.H + j);
  }
  kept.dy = a.dy ? to_compute(a.dy.at(t, b)[j]) : Compute<T>(0);
  return kept;
}

// The gradient that comes from beyond the last step.
template <class Cell, class T>
FUSEDRNN_DEVICE StateGrad<Compute<T>> final_gradient(const Backward<T>& a, int64_t b, int64_t j) {
  StateGrad<Compute<T>> grad{value_or_zero(a.dh_n, b * a.H + j), 0};
  if constexpr (Cell::kHasCellState) grad.dc = value_or_zero(a.dc_n, b * a.H + j);
  return grad;
}

// One step: the product of w_hh and the recurrent deltas of the step run after it (zero for the last), and what of the
// gradient of its states came around w_hh, which becomes the same of the step before.
template <class Cell, class T>
FUSEDRNN_DEVICE void run_unit_backward(Whole, const Kept<Cell, T>& kept, Compute<T> product,
                                       StateGrad<Compute<T>>& grad, Compute<T> (&delta)[Cell::kDeltas]) {
  grad.dh += product + kept.dy;
  Cell::backward(kept.saved, kept.step, grad, delta);
  if constexpr (!Cell::kKeepsDirect) grad.dh = 0;
}

// What step t leaves in memory.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_deltas(const Backward<T>& a, int64_t t, int64_t b, int64_t j, Whole,
                                  const Compute<T> (&delta)[Cell::kDeltas]) {
  T* row = a.delta.at(t, b) + j;
#pragma unroll
  for (int slot = 0; slot < Cell::kDeltas; ++slot) row[slot * a.H] = from_compute<T>(delta[slot]);
}

// Both, of step t.
template <class Cell, class T>
FUSEDRNN_DEVICE void backward_unit(const Backward<T>& a, int64_t t, int64_t b, int64_t j, const Kept<Cell, T>& kept,
                                   Compute<T> product, StateGrad<Compute<T>>& grad,
                                   Compute<T> (&delta)[Cell::kDeltas]) {
  run_unit_backward<Cell, T>(Whole(), kept, product, grad, delta);
  store_deltas<Cell, T>(a, t, b, j, Whole(), delta);
}

// Before the first step: the product is of the first step's deltas.
template <class Cell, class T>
FUSEDRNN_DEVICE void store_initial_gradient(const Backward<T>& a, int64_t b, int64_t j, Compute<T> product,
                                            const StateGrad<Compute<T>>& grad) {
  if (a.dh0) a.dh0[b * a.H + j] = from_compute<T>(grad.dh + product);
  if constexpr (Cell::kHasCellState)
    if (a.dc0) a.dc0[b * a.H + j] = from_compute<T>(grad.dc);
}

}  // namespace cuda
}  // namespace fusedrnn
