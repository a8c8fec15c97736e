#pragma once
#include "cell.h"

namespace fusedrnn {

// r, z = sigmoid(x + r); n = tanh(x_n + r (w_hn h + b_hn)); h = n + z (h - n): the reset comes after the product.
struct Gru {
  static constexpr CellKind kKind = kGru;
  static constexpr int kGates = 3;
  // r, z, n and the recurrent part of n, which the gradient of r needs.
  static constexpr int kSaved = 4;
  // Slots n, r, z, n*: the first three are the input side (in the order n, r, z), the last three the recurrent side (in
  // the order r, z, n), so that both are contiguous columns for the matrix products without storing r and z twice.
  static constexpr int kDeltas = 4, kRecurrentDelta = 1;
  static constexpr int kInputGate[kGates] = {2, 0, 1};
  static constexpr bool kHasCellState = false, kKeepsDirect = true, kReadsPrevious = true, kReadsOutput = false;

  template <class F>
  static FUSEDRNN_INLINE void forward(const F (&x)[3], const F (&r)[3], State<F>& s, F (&saved)[4]) {
    saved[0] = sigmoid(x[0] + r[0]);
    saved[1] = sigmoid(x[1] + r[1]);
    saved[3] = r[2];
    saved[2] = tanh(x[2] + saved[0] * r[2]);
    s.h = saved[2] + saved[1] * (s.h - saved[2]);
  }

  template <class F>
  static FUSEDRNN_INLINE void backward(const F (&saved)[4], const Step<F>& step, StateGrad<F>& grad, F (&delta)[4]) {
    const F &r = saved[0], &z = saved[1], &n = saved[2];
    const F dn = grad.dh * (1 - z) * (1 - n * n);
    delta[0] = dn;
    delta[1] = dn * saved[3] * (r * (1 - r));
    delta[2] = grad.dh * (step.h_prev - n) * (z * (1 - z));
    delta[3] = dn * r;
    grad.dh = grad.dh * z;
  }
};

}  // namespace fusedrnn
