// What all cells share: the names of the values that cross a step.
//
// A cell is a struct of constants and two functions, forward() and backward(), that hold the gate math of one step for
// one group of hidden units. They are generic in the value type F: a pack of SIMD vectors on the CPU, a scalar on the
// GPU. F has +, -, * (also with a plain number on the left), sigmoid(F), tanh(F), relu(F) and where_positive(F, F).
//
//   kKind             its number
//   kGates            rows of w_hh per hidden unit, in PyTorch's order
//   kSaved            values per unit that forward saves for backward, written over the input projection
//   kDeltas           values per unit that backward writes: gradients of the pre-activations
//   kInputGate[s]     the gate whose input-side pre-activation has slot s of the deltas as its gradient (kGates slots)
//   kRecurrentDelta   first slot of the kGates slots that are the gradients of the recurrent side, in gate order
//   kHasCellState     there is a second state, c
//   kKeepsDirect      part of dh flows to h_{t-1} without passing w_hh
//   kReadsPrevious, kReadsOutput   backward reads h_{t-1}, h_t
#pragma once
#include "../inline.h"
#include "kind.h"

namespace fusedrnn {

// The states before a step, replaced by those after it. c is left alone by cells without one.
template <class F>
struct State {
  F h, c;
};

// What backward knows of a step besides the saved values. Members that the cell does not read are not set.
template <class F>
struct Step {
  F h_prev, h, c_prev, c;
};

// Gradients: of the states after a step on entry; on return dc is the gradient of c_{t-1} and dh the part of the
// gradient of h_{t-1} that does not pass through w_hh (kKeepsDirect).
template <class F>
struct StateGrad {
  F dh, dc;
};

}  // namespace fusedrnn
