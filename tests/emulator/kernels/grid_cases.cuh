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

template <class Cell, class T, bool Tf32, class Shape>
cudaError_t run_grid(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  const GridLimits limits{g.blocks, g.shared_bytes};
  const GridProblem problem{g.B, g.H, Cell::kGates, int(sizeof(T)), backward != nullptr};
  const GridPlan plan = grid_blocks<Shape>(limits, problem);
  if (!plan.fits) return cudaErrorCooperativeLaunchTooLarge;
  if (forward)
    return run_grid_forward<Cell, T, Shape, Tf32>(forward_of<Cell, T>(g, *forward), plan, forward->workspace, nullptr);
  return run_grid_backward<Cell, T, Shape, Tf32>(backward_of<Cell, T>(g, *backward), plan, backward->workspace,
                                                 nullptr);
}

template <class T, bool Tf32, class Shape>
cudaError_t run_cell(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  constexpr decltype(&run_grid<Lstm, T, Tf32, Shape>) cells[] = {
      run_grid<Lstm, T, Tf32, Shape>, run_grid<Gru, T, Tf32, Shape>, run_grid<RnnTanh, T, Tf32, Shape>,
      run_grid<RnnRelu, T, Tf32, Shape>};
  return cells[g.cell](g, forward, backward);
}

template <class T, bool Tf32>
cudaError_t run_shape(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  switch (g.shape) {
    case 0: return run_cell<T, Tf32, GridTested>(g, forward, backward);
    case 1: return run_cell<T, Tf32, GridNarrow>(g, forward, backward);
    default: return run_cell<T, Tf32, GridWide>(g, forward, backward);
  }
}

}  // namespace cuda
}  // namespace fusedrnn
