// The persistent kernel, forward. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// What a thread does for its (row, unit) pairs in one step.
template <class Cell, class T, bool Tf32>
struct GridForwardStep {
  static constexpr int G = Cell::kGates, kSaved = Cell::kSaved ? Cell::kSaved : 1;
  using Pair = GridUnits::Pair;

  const Forward<T>& a;
  const GridShared& s;
  int64_t t;
  Exchanged<T> next;

  FUSEDRNN_DEVICE void read_input(const Pair& at, float (&x)[G]) const {
    const T* from = a.x.at(t, at.b) + at.unit;
#pragma unroll
    for (int g = 0; g < G; ++g) x[g] = to_compute(from[g * a.H]);
  }

  template <class Shape>
  FUSEDRNN_DEVICE void run(const Pair& at, float (&x)[G]) const {
    float r[G], saved[kSaved];
    State<float> state{s.h[at.state], s.c[at.state]};
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const int column = at.u * G + g;
      x[g] += s.input_bias[column];
      r[g] = sum_of<Shape>(s.sums, at.in_pass, column) + s.bias[column];
    }
    Cell::forward(x, r, state, saved);
    next.p[at.b * next.pitch + at.unit] = as_operand<T, Tf32>(from_compute<T>(state.h));
    s.h[at.state] = state.h, s.c[at.state] = state.c;
    a.y.at(t, at.b)[at.unit] = from_compute<T>(state.h);
    if (Cell::kHasCellState && a.c.p) a.c.at(t, at.b)[at.unit] = from_compute<T>(state.c);
    if (Cell::kSaved && a.saved.p)
#pragma unroll
      for (int i = 0; i < Cell::kSaved; ++i) a.saved.at(t, at.b)[i * a.H + at.unit] = from_compute<T>(saved[i]);
  }
};

// States and biases into shared memory, h0 into the first buffer.
template <class Cell, class T, bool Tf32>
FUSEDRNN_DEVICE void begin_forward(const Forward<T>& a, const GridWorkspace<T>& w, const GridShared& s,
                                   const GridUnits& units) {
  const Exchanged<T> first = w.at(0);
  for (int64_t i = threadIdx.x; i < a.B * units.count; i += blockDim.x) {
    const int64_t b = i / units.count, unit = units.first + i % units.count;
    s.h[i] = value_or_zero(a.h0, b * a.H + unit);
    s.c[i] = Cell::kHasCellState ? value_or_zero(a.c0, b * a.H + unit) : 0.0f;
    first.p[b * first.pitch + unit] = as_operand<T, Tf32>(from_compute<T>(s.h[i]));
  }
  for (int i = int(threadIdx.x); i < units.count * Cell::kGates; i += int(blockDim.x)) {
    const int64_t from = i % Cell::kGates * a.H + units.first + i / Cell::kGates;
    s.input_bias[i] = value_or_zero(a.b_ih, from);
    s.bias[i] = value_or_zero(a.b_hh, from);
  }
  if (blockIdx.x == gridDim.x - 1) clear_padding(w, a.B, a.H);
  if (blockIdx.x == 0 && threadIdx.x == 0) GridBarrier::clear(w.arrivals);
}

// Columns of a block: G neighbours for each unit.
template <class Cell, class T, class Shape, bool Tf32>
__global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    grid_forward(const Forward<T> a, const GridWorkspace<T> w, const GridPlan plan) {
  constexpr int G = Cell::kGates;
  using P = Product<T, Tf32, Shape::kTiles>;
  DYNAMIC_SHARED(carver);
  const GridShared s = GridShared::carve<Shape>(carver, plan, a.B);
  const GridUnits units(plan, a.H);
  begin_forward<Cell, T, Tf32>(a, w, s, units);
  Weights<Shape> weights(s.weights, w.streamed, plan);
  weights.template take<T>(plan, [&](int column, int64_t k) {
    const int u = column / G, g = column - u * G;
    if (u >= units.count || k >= a.H) return from_compute<T>(0.0f);
    return as_operand<T, Tf32>(a.w_hh[(g * a.H + units.first + u) * a.H + k]);
  });
  cooperative_groups::this_grid().sync();

  GridBarrier barrier(w.arrivals);
  const int thread = int(threadIdx.x);
  for (int64_t k = 0; k < a.steps; ++k) {
    const GridForwardStep<Cell, T, Tf32> step{a, s, step_of(k, a.steps, a.reverse), w.at(k + 1)};
    for (int64_t row = 0; row < a.B; row += kPassRows) {
      const int pairs = rows_of_pass(a.B, row) * units.count;
      float x[G];
      // Of nobody else: it is on its way while this block waits and multiplies.
      if (thread < pairs) step.read_input(units.pair(thread, row), x);
      if (row == 0 && k > 0) barrier.pass();
      multiply_pass<P>(weights, w.at(k), row, a.B, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto pair = units.pair(i, row);
        if (i != thread) step.read_input(pair, x);
        step.template run<Shape>(pair, x);
      }
      if (row + kPassRows < a.B) __syncthreads();  // before the next pass overwrites the sums; else arrive() does it
    }
    if (k + 1 < a.steps) barrier.arrive();
  }
  __syncthreads();
  for (int64_t i = thread; i < a.B * units.count; i += Shape::kWarps * 32) {
    const int64_t to = i / units.count * a.H + units.first + i % units.count;
    a.h_n[to] = from_compute<T>(s.h[i]);
    if (Cell::kHasCellState) a.c_n[to] = from_compute<T>(s.c[i]);
  }
}

// workspace: plan.workspace_bytes, 16-byte aligned, of any content. The plan is that of grid_blocks<Shape>.
template <class Cell, class T, class Shape, bool Tf32>
cudaError_t run_grid_forward(const Forward<T>& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, a.B, stream), grid_forward<Cell, T, Shape, Tf32>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
