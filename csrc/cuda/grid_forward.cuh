// The persistent kernel, forward. See grid.cuh.
#pragma once
#include "grid.cuh"

namespace fusedrnn {
namespace cuda {

// Step k of one (row, unit) pair, whose partial sums are there: forward_unit, and the new h for the other blocks.
template <class Cell, class T, class Shape, bool Tf32, class A>
FUSEDRNN_DEVICE void grid_forward_unit(const A& a, const GridWorkspace<T>& w, const GridShared& s, int64_t k,
                                       const GridPart::Pair& at, const Projection<Cell, T>& x) {
  constexpr int G = Cell::kGates;
  float product[G], saved[kSavedSlots<Cell>];
  Biases<Cell, T> bias;
  State<float> state{s.h[at.state], s.c[at.state]};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int column = at.u * G + g;
    bias.input[g] = s.input_bias[column], bias.recurrent[g] = s.bias[column];
    product[g] = sum_of<Shape>(s.sums, at.in_pass, column);
  }
  const int64_t t = step_of(k, a.steps, a.reverse);
  const auto turn = turn_of<Cell>(a, t, at.b, at.unit);
  run_unit<Cell, T>(turn, x, bias, product, state, saved);
  const State<float> next = next_state(turn, state);
  w.at(k + 1).publish(at.b, at.unit, as_operand<T, Tf32>(from_compute<T>(next.h)));
  w.at(k - 1).clear(at.b, at.unit);
  store_unit<Cell, T>(a, t, at.b, at.unit, turn, state, saved);
  s.h[at.state] = next.h, s.c[at.state] = next.c;
}

// States and biases into shared memory, h0 into the first exchange.
template <class Cell, class T, bool Tf32, class A>
FUSEDRNN_DEVICE void begin_forward(const A& a, const GridWorkspace<T>& w, const GridShared& s, const GridPart& part) {
  for (int64_t i = threadIdx.x; i < part.states(); i += blockDim.x) {
    const int64_t b = part.row_of(i), unit = part.unit_of(i);
    const State<float> state = initial_state<Cell>(a, b, unit);
    s.h[i] = state.h, s.c[i] = state.c;
    w.at(0).publish(b, unit, as_operand<T, Tf32>(from_compute<T>(state.h)));
    for (int64_t k = 1; k < kExchanges; ++k) w.at(k).clear(b, unit);
  }
  for (int i = int(threadIdx.x); i < part.count * Cell::kGates; i += int(blockDim.x)) {
    const int64_t from = i % Cell::kGates * a.H + part.first + i / Cell::kGates;
    s.input_bias[i] = value_or_zero(a.b_ih, from);
    s.bias[i] = value_or_zero(a.b_hh, from);
  }
  clear_padding(w, part, a.H);
}

// Columns of a block: G neighbours for each unit.
template <class Cell, class T, class Shape, bool Tf32, class A>
__global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    grid_forward_kernel(const A a, const GridWorkspace<T> w, const GridPlan plan) {
  constexpr int G = Cell::kGates;
  using P = Product<T, Tf32, Shape::kTiles>;
  DYNAMIC_SHARED(carver);
  const GridShared s = GridShared::carve<Shape>(carver, plan);
  const GridPart part(plan, a.B, a.H);
  begin_forward<Cell, T, Tf32>(a, w, s, part);
  Weights<Shape> weights(s.weights, w.streamed, plan);
  weights.template take<T>(plan, [&](int column, int64_t k) {
    const int u = column / G, g = column - u * G;
    if (u >= part.count || k >= a.H) return from_compute<T>(0.0f);
    return as_operand<T, Tf32>(a.w_hh[(g * a.H + part.first + u) * a.H + k]);
  });
  cooperative_groups::this_grid().sync();

  const int thread = int(threadIdx.x);
  for (int64_t k = 0; k < a.steps; ++k) {
    const int64_t t = step_of(k, a.steps, a.reverse);
    fence_gpu();  // orders exchanges, see grid.cuh
    for (int64_t row = part.begin; row < part.end; row += kPassRows) {
      const int pairs = pass_rows(part.end - row) * part.count;
      Projection<Cell, T> x;
      // Of nobody else: it is on its way while this block waits and multiplies.
      if (const auto at = part.pair(part.place(thread), row); thread < pairs)
        x = load_projection<Cell>(a, t, at.b, at.unit);
      multiply_pass<P>(weights, w.at(k), row, part.end, plan, s.sums);
      __syncthreads();
      for (int i = thread; i < pairs; i += Shape::kWarps * 32) {
        const auto at = part.pair(part.place(i), row);
        if (i != thread) x = load_projection<Cell>(a, t, at.b, at.unit);
        grid_forward_unit<Cell, T, Shape, Tf32>(a, w, s, k, at, x);
      }
      __syncthreads();  // before the next product overwrites the sums
    }
  }
  for (int64_t i = thread; i < part.states(); i += Shape::kWarps * 32)
    store_final_state<Cell>(a, part.row_of(i), part.unit_of(i), {s.h[i], s.c[i]});
}

// workspace: plan.workspace_bytes, 16-byte aligned, of any content. The plan is that of grid_blocks<Shape>.
template <class Cell, class T, class Shape, bool Tf32, class A>
cudaError_t run_grid_forward(const A& a, const GridPlan& plan, void* workspace, cudaStream_t stream) {
  return launch(grid_launch<Shape>(plan, stream), grid_forward_kernel<Cell, T, Shape, Tf32, A>, a,
                GridWorkspace<T>(workspace, plan, a.B), plan);
}

}  // namespace cuda
}  // namespace fusedrnn
