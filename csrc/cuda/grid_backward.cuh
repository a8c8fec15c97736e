// The persistent kernel, backward, from the last step to the first. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// In shared memory h is the part of dh that does not pass w_hh (at first: dh_n), and c is dc.

// Step k of one (row, unit) pair: backward_unit, and the recurrent deltas for the other blocks.
template <class Cell, class T, bool Tf32, class A>
FUSEDRNN_DEVICE void grid_backward_unit(const A& a, const GridWorkspace<T>& w, const GridShared& s, int64_t k,
                                        const GridPart::Pair& at, const Kept<Cell, T>& kept, float product) {
  float delta[Cell::kDeltas];
  StateGrad<float> grad{s.h[at.state], s.c[at.state]};
  const int64_t t = step_of(k, a.steps, a.reverse);
  const auto turn = turn_of<Cell>(a, t, at.b, at.unit);
  run_unit_backward<Cell, T>(turn, kept, product, grad, delta);
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g)
    w.at(k).publish(at.b, g * a.H + at.unit, as_operand<T, Tf32>(from_compute<T>(delta[Cell::kRecurrentDelta + g])));
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) w.at(k + 2).clear(at.b, g * a.H + at.unit);
  store_deltas<Cell, T>(a, t, at.b, at.unit, turn, delta);
  s.h[at.state] = grad.dh, s.c[at.state] = grad.dc;
}

// The gradients of the last states into shared memory.
template <class Cell, class T, class A>
FUSEDRNN_DEVICE void begin_backward(const A& a, const GridWorkspace<T>& w, const GridShared& s, const GridPart& part) {
  for (int64_t i = threadIdx.x; i < part.states(); i += blockDim.x) {
    const int64_t b = part.row_of(i), unit = part.unit_of(i);
    const StateGrad<float> grad = final_gradient<Cell>(a, b, unit);
    s.h[i] = grad.dh, s.c[i] = grad.dc;
    for (int64_t k = 0; k < kExchanges; ++k)
      for (int g = 0; g < Cell::kGates; ++g) w.at(k).clear(b, g * a.H + unit);
  }
  clear_padding(w, part, Cell::kGates * a.H);
}

// Columns of a block: its units.
template <class Cell, class T, class Shape, bool Tf32, class A>
__global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    grid_backward_kernel(const A a, const GridWorkspace<T> w, const GridPlan plan) {
  using Plain = Product<T, Tf32, Shape::kTiles>;
  using P = std::conditional_t<std::is_same_v<A, Backward<T>>, Plain, Frugal<Plain>>;  // masks take registers
  DYNAMIC_SHARED(carver);
  const GridShared s = GridShared::carve<Shape>(carver, plan);
  const GridPart part(plan, a.B, a.H);
  begin_backward<Cell>(a, w, s, part);
  Weights<Shape> weights(s.weights, w.streamed, plan);
  weights.template take<T>(plan, [&](int column, int64_t k) {
    if (column >= part.count || k >= Cell::kGates * a.H) return from_compute<T>(0.0f);
    return as_operand<T, Tf32>(a.w_hh[k * a.H + part.first + column]);
  });
  cooperative_groups::this_grid().sync();

  const int thread = int(threadIdx.x);
  for (int64_t k = a.steps - 1; k >= 0; --k) {
    const bool last = k == a.steps - 1;
    fence_gpu();  // orders exchanges, see grid.cuh
    for (int64_t row = part.begin; row < part.end; row += kPassRows) {
      const int pairs = pass_rows(part.end - row) * part.count;
      Kept<Cell, T> kept;
      // Of nobody else: it is on its way while this block waits and multiplies.
      if (const auto at = part.pair(part.place(thread), row); thread < pairs)
        kept = load_kept<Cell>(a, k, at.b, at.unit);
      if (!last) multiply_pass<P>(weights, w.at(k + 1), row, part.end, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto at = part.pair(part.place(i), row);
        if (i != thread) kept = load_kept<Cell>(a, k, at.b, at.unit);
        const float product = last ? 0.0f : sum_of<Shape>(s.sums, at.in_pass, at.u);
        grid_backward_unit<Cell, T, Tf32>(a, w, s, k, at, kept, product);
      }
      __syncthreads();  // before the next product overwrites the sums
    }
  }
  const bool product = a.dh0 && a.steps > 0;
  for (int64_t row = part.begin; row < part.end; row += kPassRows) {
    if (product) multiply_pass<P>(weights, w.at(0), row, part.end, plan, s.sums);
    __syncthreads();
    for (int i = thread; i < pass_rows(part.end - row) * part.count; i += Shape::kWarps * 32) {
      const auto at = part.pair(part.place(i), row);
      const float through = product ? sum_of<Shape>(s.sums, at.in_pass, at.u) : 0.0f;
      store_initial_gradient<Cell>(a, at.b, at.unit, through, {s.h[at.state], s.c[at.state]});
    }
    __syncthreads();
  }
}

// As run_grid_forward.
template <class Cell, class T, class Shape, bool Tf32, class A>
cudaError_t run_grid_backward(const A& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, stream), grid_backward_kernel<Cell, T, Shape, Tf32, A>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
