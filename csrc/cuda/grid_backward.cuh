// The persistent kernel, backward, from the last step to the first. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// What a thread does for its (row, unit) pairs in one step. In shared memory h is the part of dh that does not pass
// w_hh (at the last step: dh_n), and c is dc.
template <class Cell, class T, bool Tf32>
struct GridBackwardStep {
  static constexpr int G = Cell::kGates, kSaved = Cell::kSaved ? Cell::kSaved : 1;
  using Pair = GridUnits::Pair;

  struct Inputs {
    float dy, saved[kSaved];
    Step<float> step;
  };

  const Backward<T>& a;
  const GridShared& s;
  int64_t k;
  Exchanged<T> next;

  // Of step k - 1, or the state before the first.
  FUSEDRNN_DEVICE float before(const Steps<const T>& all, const T* start, const Pair& at) const {
    if (k > 0) return to_compute(all.at(step_of(k - 1, a.steps, a.reverse), at.b)[at.unit]);
    return value_or_zero(start, at.b * a.H + at.unit);
  }

  FUSEDRNN_DEVICE Inputs read(const Pair& at) const {
    const int64_t t = step_of(k, a.steps, a.reverse);
    Inputs in{};
    in.dy = a.dy.p ? to_compute(a.dy.at(t, at.b)[at.unit]) : 0.0f;
    if constexpr (Cell::kSaved > 0) {
#pragma unroll
      for (int i = 0; i < Cell::kSaved; ++i) in.saved[i] = to_compute(a.saved.at(t, at.b)[i * a.H + at.unit]);
    }
    if constexpr (Cell::kReadsOutput) in.step.h = to_compute(a.y.at(t, at.b)[at.unit]);
    if constexpr (Cell::kReadsPrevious) in.step.h_prev = before(a.y, a.h0, at);
    if constexpr (Cell::kHasCellState) {
      in.step.c = to_compute(a.c.at(t, at.b)[at.unit]);
      in.step.c_prev = before(a.c, a.c0, at);
    }
    return in;
  }

  template <class Shape>
  FUSEDRNN_DEVICE void run(const Pair& at, const Inputs& in) const {
    const bool last = k == a.steps - 1;
    float delta[Cell::kDeltas];
    StateGrad<float> grad{in.dy, s.c[at.state]};
    if (!last) grad.dh += sum_of<Shape>(s.sums, at.in_pass, at.u);
    if (Cell::kKeepsDirect || last) grad.dh += s.h[at.state];
    Cell::backward(in.saved, in.step, grad, delta);
    T* to = a.delta.at(step_of(k, a.steps, a.reverse), at.b) + at.unit;
    T* published = next.p + at.b * next.pitch + at.unit;
#pragma unroll
    for (int i = 0; i < Cell::kDeltas; ++i) {
      const T stored = from_compute<T>(delta[i]);
      const int g = i - Cell::kRecurrentDelta;
      if (g >= 0 && g < G) published[g * a.H] = as_operand<T, Tf32>(stored);
      to[i * a.H] = stored;
    }
    s.h[at.state] = grad.dh, s.c[at.state] = grad.dc;
  }
};

// The gradients of the last states into shared memory.
template <class Cell, class T>
FUSEDRNN_DEVICE void begin_backward(const Backward<T>& a, const GridWorkspace<T>& w, const GridShared& s,
                                    const GridUnits& units) {
  for (int64_t i = threadIdx.x; i < a.B * units.count; i += blockDim.x) {
    const int64_t from = i / units.count * a.H + units.first + i % units.count;
    s.h[i] = value_or_zero(a.dh_n, from);
    s.c[i] = Cell::kHasCellState ? value_or_zero(a.dc_n, from) : 0.0f;
  }
  if (blockIdx.x == gridDim.x - 1) clear_padding(w, a.B, Cell::kGates * a.H);
  if (blockIdx.x == 0 && threadIdx.x == 0) GridBarrier::clear(w.arrivals);
}

// Columns of a block: its units. A barrier ends each step but the first one, and that too where dh0 is wanted.
template <class Cell, class T, class Shape, bool Tf32>
__global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    grid_backward(const Backward<T> a, const GridWorkspace<T> w, const GridPlan plan) {
  using P = Product<T, Tf32, Shape::kTiles>;
  DYNAMIC_SHARED(carver);
  const GridShared s = GridShared::carve<Shape>(carver, plan, a.B);
  const GridUnits units(plan, a.H);
  begin_backward<Cell>(a, w, s, units);
  Weights<Shape> weights(s.weights, w.streamed, plan);
  weights.template take<T>(plan, [&](int column, int64_t k) {
    if (column >= units.count || k >= Cell::kGates * a.H) return from_compute<T>(0.0f);
    return as_operand<T, Tf32>(a.w_hh[k * a.H + units.first + column]);
  });
  cooperative_groups::this_grid().sync();

  GridBarrier barrier(w.arrivals);
  const int thread = int(threadIdx.x);
  for (int64_t k = a.steps - 1; k >= 0; --k) {
    const bool last = k == a.steps - 1;
    const GridBackwardStep<Cell, T, Tf32> step{a, s, k, w.at(k)};
    for (int64_t row = 0; row < a.B; row += kPassRows) {
      const int pairs = rows_of_pass(a.B, row) * units.count;
      typename GridBackwardStep<Cell, T, Tf32>::Inputs in;
      // Of nobody else: on its way while this block waits and multiplies.
      if (thread < pairs) in = step.read(units.pair(thread, row));
      if (row == 0 && !last) barrier.pass();
      if (!last) multiply_pass<P>(weights, w.at(k + 1), row, a.B, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto pair = units.pair(i, row);
        if (i != thread) in = step.read(pair);
        step.template run<Shape>(pair, in);
      }
      if (row + kPassRows < a.B) __syncthreads();  // before the next pass overwrites the sums; else arrive() does it
    }
    if (k > 0 || a.dh0) barrier.arrive();
  }
  if (a.dh0 && a.steps > 0) barrier.pass();
  for (int64_t row = 0; row < a.B; row += kPassRows) {
    const bool product = a.dh0 && a.steps > 0;
    if (product) multiply_pass<P>(weights, w.at(0), row, a.B, plan, s.sums);
    __syncthreads();
    for (int i = thread; i < rows_of_pass(a.B, row) * units.count; i += Shape::kWarps * 32) {
      const auto at = units.pair(i, row);
      // dh0 is what passes w_hh and what does not.
      float dh = Cell::kKeepsDirect || a.steps == 0 ? s.h[at.state] : 0.0f;
      if (product) dh += sum_of<Shape>(s.sums, at.in_pass, at.u);
      if (a.dh0) a.dh0[at.b * a.H + at.unit] = from_compute<T>(dh);
      if (Cell::kHasCellState && a.dc0) a.dc0[at.b * a.H + at.unit] = from_compute<T>(s.c[at.state]);
    }
    __syncthreads();
  }
}

// As run_grid_forward.
template <class Cell, class T, class Shape, bool Tf32>
cudaError_t run_grid_backward(const Backward<T>& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, a.B, stream), grid_backward<Cell, T, Shape, Tf32>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
