// The persistent kernels in a shape of tests: so small that a few chunks are more than fit in registers, and few enough
// fibers for many tests.
#pragma once
#include "csrc/cuda/kernels.h"

namespace fusedrnn {
namespace cuda {

using GridTested = GridShape<2, 2, 1>;

// In the order in which Python numbers them.
inline GridPlan grid_plan_of(int shape, const GridLimits& limits, const GridProblem& problem, int teams) {
  switch (shape) {
    case 0: return grid_blocks<GridTested>(limits, problem, teams);
    case 1: return grid_blocks<GridNarrow>(limits, problem, teams);
    case 2: return grid_blocks<GridWide>(limits, problem, teams);
    default: return grid_blocks<GridBroad>(limits, problem, teams);
  }
}

// A: Forward<T> or MaskedForward<T>, and the same of backward.
template <class T, bool Tf32, class A>
cudaError_t grid_tested_forward(CellKind cell, const A& a, const GridPlan& plan, void* workspace);
template <class T, bool Tf32, class A>
cudaError_t grid_tested_backward(CellKind cell, const A& a, const GridPlan& plan, void* workspace);

}  // namespace cuda
}  // namespace fusedrnn
