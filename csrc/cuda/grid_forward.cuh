// The persistent kernel, forward. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// Step t of one (row, unit) pair, whose partial sums are there: forward_unit, and the new h for the other blocks.
template <class Cell, class T, class Shape, bool Tf32>
FUSEDRNN_DEVICE void grid_forward_unit(const Forward<T>& a, const GridShared& s, int64_t t, const GridUnits::Pair& at,
                                       const Projection<Cell, T>& x, const Exchanged<T>& next) {
  constexpr int G = Cell::kGates;
  float product[G];
  Biases<Cell, T> bias;
  State<float> state{s.h[at.state], s.c[at.state]};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int column = at.u * G + g;
    bias.input[g] = s.input_bias[column], bias.recurrent[g] = s.bias[column];
    product[g] = sum_of<Shape>(s.sums, at.in_pass, column);
  }
  forward_unit<Cell, T>(a, t, at.b, at.unit, x, bias, product, state);
  next.p[at.b * next.pitch + at.unit] = as_operand<T, Tf32>(from_compute<T>(state.h));
  s.h[at.state] = state.h, s.c[at.state] = state.c;
}

// States and biases into shared memory, h0 into the first buffer.
template <class Cell, class T, bool Tf32>
FUSEDRNN_DEVICE void begin_forward(const Forward<T>& a, const GridWorkspace<T>& w, const GridShared& s,
                                   const GridUnits& units) {
  const Exchanged<T> first = w.at(0);
  for (int64_t i = threadIdx.x; i < a.B * units.count; i += blockDim.x) {
    const int64_t b = i / units.count, unit = units.first + i % units.count;
    const State<float> state = initial_state<Cell>(a, b, unit);
    s.h[i] = state.h, s.c[i] = state.c;
    first.p[b * first.pitch + unit] = as_operand<T, Tf32>(from_compute<T>(state.h));
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
    grid_forward_kernel(const Forward<T> a, const GridWorkspace<T> w, const GridPlan plan) {
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
    const int64_t t = step_of(k, a.steps, a.reverse);
    for (int64_t row = 0; row < a.B; row += kPassRows) {
      const int pairs = pass_rows(a.B - row) * units.count;
      Projection<Cell, T> x;
      // Of nobody else: it is on its way while this block waits and multiplies.
      if (const auto at = units.pair(thread, row); thread < pairs) x = load_projection<Cell>(a, t, at.b, at.unit);
      if (row == 0 && k > 0) barrier.pass();
      multiply_pass<P>(weights, w.at(k), row, a.B, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto at = units.pair(i, row);
        if (i != thread) x = load_projection<Cell>(a, t, at.b, at.unit);
        grid_forward_unit<Cell, T, Shape, Tf32>(a, s, t, at, x, w.at(k + 1));
      }
      if (row + kPassRows < a.B) __syncthreads();  // before the next pass overwrites the sums; else arrive() does it
    }
    if (k + 1 < a.steps) barrier.arrive();
  }
  __syncthreads();
  for (int64_t i = thread; i < a.B * units.count; i += Shape::kWarps * 32) {
    store_final_state<Cell>(a, i / units.count, units.first + i % units.count, {s.h[i], s.c[i]});
  }
}

// workspace: plan.workspace_bytes, 16-byte aligned, of any content. The plan is that of grid_blocks<Shape>.
template <class Cell, class T, class Shape, bool Tf32>
cudaError_t run_grid_forward(const Forward<T>& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, a.B, stream), grid_forward_kernel<Cell, T, Shape, Tf32>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
