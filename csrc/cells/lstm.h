#pragma once
#include "cell.h"

namespace fusedrnn {

// i, f, o = sigmoid, g = tanh of x + r; c = f c + i g; h = o tanh(c).
struct Lstm {
  static constexpr CellKind kKind = kLstm;
  static constexpr int kGates = 4, kSaved = 4, kDeltas = 4, kRecurrentDelta = 0;
  static constexpr int kInputGate[kGates] = {0, 1, 2, 3};
  static constexpr bool kHasCellState = true, kKeepsDirect = false, kReadsPrevious = false, kReadsOutput = false;

  template <class F>
  static FUSEDRNN_INLINE void forward(const F (&x)[4], const F (&r)[4], State<F>& s, F (&saved)[4]) {
    saved[0] = sigmoid(x[0] + r[0]);
    saved[1] = sigmoid(x[1] + r[1]);
    saved[2] = tanh(x[2] + r[2]);
    saved[3] = sigmoid(x[3] + r[3]);
    s.c = saved[1] * s.c + saved[0] * saved[2];
    s.h = saved[3] * tanh(s.c);
  }

  template <class F>
  static FUSEDRNN_INLINE void backward(const F (&saved)[4], const Step<F>& step, StateGrad<F>& grad, F (&delta)[4]) {
    const F &i = saved[0], &f = saved[1], &g = saved[2], &o = saved[3];
    // tanh(c) is computed again: a transcendental costs less than reading one more saved tensor from memory.
    const F tc = tanh(step.c);
    const F dc = grad.dc + grad.dh * o * (1 - tc * tc);
    delta[0] = dc * g * (i * (1 - i));
    delta[1] = dc * step.c_prev * (f * (1 - f));
    delta[2] = dc * i * (1 - g * g);
    delta[3] = grad.dh * tc * (o * (1 - o));
    grad.dc = dc * f;
  }
};

}  // namespace fusedrnn
