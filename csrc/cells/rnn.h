#pragma once
#include "cell.h"

namespace fusedrnn {

// h = activation(x + r). Backward needs the output alone, so nothing is saved.
template <class Activation>
struct Rnn {
  static constexpr CellKind kKind = Activation::kKind;
  static constexpr int kGates = 1, kSaved = 0, kDeltas = 1, kRecurrentDelta = 0;
  static constexpr int kInputGate[kGates] = {0};
  static constexpr bool kHasCellState = false, kKeepsDirect = false, kReadsPrevious = false, kReadsOutput = true;

  template <class F>
  static FUSEDRNN_INLINE void forward(const F (&x)[1], const F (&r)[1], State<F>& s, F*) {
    s.h = Activation::apply(x[0] + r[0]);
  }

  template <class F>
  static FUSEDRNN_INLINE void backward(const F*, const Step<F>& step, StateGrad<F>& grad, F (&delta)[1]) {
    delta[0] = Activation::gradient(step.h, grad.dh);
  }
};

struct Tanh {
  static constexpr CellKind kKind = kRnnTanh;

  template <class F>
  static FUSEDRNN_INLINE F apply(const F& x) {
    return tanh(x);
  }
  template <class F>
  static FUSEDRNN_INLINE F gradient(const F& y, const F& dy) {
    return dy * (1 - y * y);
  }
};

struct Relu {
  static constexpr CellKind kKind = kRnnRelu;

  template <class F>
  static FUSEDRNN_INLINE F apply(const F& x) {
    return relu(x);
  }
  template <class F>
  static FUSEDRNN_INLINE F gradient(const F& y, const F& dy) {
    return where_positive(y, dy);
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace fusedrnn
