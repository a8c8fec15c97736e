// The persistent kernels of one type: every cell and every shape, chosen at run time.
#pragma once
#include "csrc/cuda/grid_backward.cuh"
#include "csrc/cuda/grid_forward.cuh"
#include "grid_cases.h"

namespace fusedrnn {
namespace cuda {

// So small that a few chunks are more than fit in registers, and few enough fibers for many tests.
using GridTested = GridShape<2, 2, 1>;

template <class T>
Steps<T> steps_of(const GridCase& g, const void* p, int values) {
  const int64_t row = int64_t(values) * g.H;
  T* data = static_cast<T*>(const_cast<void*>(p));
  return g.batch_first ? Steps<T>{data, row, g.T * row} : Steps<T>{data, g.B * row, row};
}

template <class Cell, class T>
Forward<T> forward_of(const GridCase& g, const GridForwardTensors& a) {
  const auto in = [](const void* p) { return static_cast<const T*>(p); };
  const auto out = [](void* p) { return static_cast<T*>(p); };
  return {g.T,
          g.B,
          g.H,
          g.reverse,
          steps_of<const T>(g, a.x, Cell::kGates),
          steps_of<T>(g, a.y, 1),
          steps_of<T>(g, a.c, 1),
          steps_of<T>(g, a.saved, Cell::kSaved),
          in(a.h0),
          in(a.c0),
          out(a.h_n),
          out(a.c_n),
          in(a.w_hh),
          in(a.b_ih),
          in(a.b_hh)};
}

template <class Cell, class T>
Backward<T> backward_of(const GridCase& g, const GridBackwardTensors& a) {
  const auto in = [](const void* p) { return static_cast<const T*>(p); };
  return {g.T,
          g.B,
          g.H,
          g.reverse,
          steps_of<const T>(g, a.saved, Cell::kSaved),
          steps_of<const T>(g, a.y, 1),
          steps_of<const T>(g, a.c, 1),
          in(a.h0),
          in(a.c0),
          steps_of<const T>(g, a.dy, 1),
          in(a.dh_n),
          in(a.dc_n),
          in(a.w_hh),
          steps_of<T>(g, a.delta, Cell::kDeltas),
          static_cast<T*>(a.dh0),
          static_cast<T*>(a.dc0)};
}

// The kernels of csrc/cuda, or those of the tested shape, which is compiled here alone.
template <class Cell, class T, bool Tf32>
cudaError_t run_grid(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  const GridLimits limits{g.blocks, g.shared_bytes};
  const GridProblem problem{g.B, g.H, Cell::kGates, int(sizeof(T)), backward != nullptr};
  const GridPlan plan = g.shape == 0   ? grid_blocks<GridTested>(limits, problem)
                        : g.shape == 1 ? grid_blocks<GridNarrow>(limits, problem)
                                       : grid_blocks<GridWide>(limits, problem);
  if (!plan.fits) return cudaErrorCooperativeLaunchTooLarge;
  const CellKind cell = CellKind(g.cell);
  if (forward) {
    const auto a = forward_of<Cell, T>(g, *forward);
    if (g.shape == 0) return run_grid_forward<Cell, T, GridTested, Tf32>(a, plan, forward->workspace, nullptr);
    return grid_forward<T>(cell, a, plan, Tf32, forward->workspace, nullptr);
  }
  const auto a = backward_of<Cell, T>(g, *backward);
  if (g.shape == 0) return run_grid_backward<Cell, T, GridTested, Tf32>(a, plan, backward->workspace, nullptr);
  return grid_backward<T>(cell, a, plan, Tf32, backward->workspace, nullptr);
}

template <class T, bool Tf32>
cudaError_t run_cell(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  constexpr decltype(&run_grid<Lstm, T, Tf32>) cells[] = {run_grid<Lstm, T, Tf32>, run_grid<Gru, T, Tf32>,
                                                          run_grid<RnnTanh, T, Tf32>, run_grid<RnnRelu, T, Tf32>};
  return cells[g.cell](g, forward, backward);
}

}  // namespace cuda
}  // namespace fusedrnn
