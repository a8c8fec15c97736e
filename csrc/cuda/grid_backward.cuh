// The persistent kernel, backward, from the last step to the first. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// In shared memory h is the part of dh that does not pass w_hh (at first: dh_n), and c is dc.

// Step k of one (row, unit) pair: backward_unit, and the recurrent deltas for the other blocks.
template <class Cell, class T, bool Tf32>
FUSEDRNN_DEVICE void grid_backward_unit(const Backward<T>& a, const GridShared& s, int64_t k, const GridUnits::Pair& at,
                                        const Kept<Cell, T>& kept, float product, const Exchanged<T>& next) {
  float delta[Cell::kDeltas];
  StateGrad<float> grad{s.h[at.state], s.c[at.state]};
  backward_unit<Cell, T>(a, step_of(k, a.steps, a.reverse), at.b, at.unit, kept, product, grad, delta);
  T* published = next.p + at.b * next.pitch + at.unit;
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g)
    published[g * a.H] = as_operand<T, Tf32>(from_compute<T>(delta[Cell::kRecurrentDelta + g]));
  s.h[at.state] = grad.dh, s.c[at.state] = grad.dc;
}

// The gradients of the last states into shared memory.
template <class Cell, class T>
FUSEDRNN_DEVICE void begin_backward(const Backward<T>& a, const GridWorkspace<T>& w, const GridShared& s,
                                    const GridUnits& units) {
  for (int64_t i = threadIdx.x; i < a.B * units.count; i += blockDim.x) {
    const StateGrad<float> grad = final_gradient<Cell>(a, i / units.count, units.first + i % units.count);
    s.h[i] = grad.dh, s.c[i] = grad.dc;
  }
  if (blockIdx.x == gridDim.x - 1) clear_padding(w, a.B, Cell::kGates * a.H);
  if (blockIdx.x == 0 && threadIdx.x == 0) GridBarrier::clear(w.arrivals);
}

// Columns of a block: its units. A barrier ends each step but the first one, and that too where dh0 is wanted.
template <class Cell, class T, class Shape, bool Tf32>
__global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    grid_backward_kernel(const Backward<T> a, const GridWorkspace<T> w, const GridPlan plan) {
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
    for (int64_t row = 0; row < a.B; row += kPassRows) {
      const int pairs = pass_rows(a.B - row) * units.count;
      Kept<Cell, T> kept;
      // Of nobody else: it is on its way while this block waits and multiplies.
      if (const auto at = units.pair(thread, row); thread < pairs) kept = load_kept<Cell>(a, k, at.b, at.unit);
      if (row == 0 && !last) barrier.pass();
      if (!last) multiply_pass<P>(weights, w.at(k + 1), row, a.B, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto at = units.pair(i, row);
        if (i != thread) kept = load_kept<Cell>(a, k, at.b, at.unit);
        const float product = last ? 0.0f : sum_of<Shape>(s.sums, at.in_pass, at.u);
        grid_backward_unit<Cell, T, Tf32>(a, s, k, at, kept, product, w.at(k));
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
    for (int i = thread; i < pass_rows(a.B - row) * units.count; i += Shape::kWarps * 32) {
      const auto at = units.pair(i, row);
      const float through = product ? sum_of<Shape>(s.sums, at.in_pass, at.u) : 0.0f;
      store_initial_gradient<Cell>(a, at.b, at.unit, through, {s.h[at.state], s.c[at.state]});
    }
    __syncthreads();
  }
}

// As run_grid_forward.
template <class Cell, class T, class Shape, bool Tf32>
cudaError_t run_grid_backward(const Backward<T>& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, a.B, stream), grid_backward_kernel<Cell, T, Shape, Tf32>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
