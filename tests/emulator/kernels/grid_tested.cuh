#pragma once
#include "csrc/cuda/grid_backward.cuh"
#include "csrc/cuda/grid_forward.cuh"
#include "grid_tested.h"

namespace fusedrnn {
namespace cuda {

template <class T, bool Tf32, class A>
cudaError_t grid_tested_forward(CellKind cell, const A& a, const GridPlan& plan, void* workspace) {
  cudaError_t (*const run[])(const A&, const GridPlan&, void*, cudaStream_t) = {
      run_grid_forward<Lstm, T, GridTested, Tf32>, run_grid_forward<Gru, T, GridTested, Tf32>,
      run_grid_forward<RnnTanh, T, GridTested, Tf32>, run_grid_forward<RnnRelu, T, GridTested, Tf32>};
  return run[cell](a, plan, workspace, nullptr);
}
template <class T, bool Tf32, class A>
cudaError_t grid_tested_backward(CellKind cell, const A& a, const GridPlan& plan, void* workspace) {
  cudaError_t (*const run[])(const A&, const GridPlan&, void*, cudaStream_t) = {
      run_grid_backward<Lstm, T, GridTested, Tf32>, run_grid_backward<Gru, T, GridTested, Tf32>,
      run_grid_backward<RnnTanh, T, GridTested, Tf32>, run_grid_backward<RnnRelu, T, GridTested, Tf32>};
  return run[cell](a, plan, workspace, nullptr);
}

#define GRID_TESTED_WITH(T, tf32, Masks)                                                                         \
  template cudaError_t grid_tested_forward<T, tf32>(CellKind, const Masks##Forward<T>&, const GridPlan&, void*); \
  template cudaError_t grid_tested_backward<T, tf32>(CellKind, const Masks##Backward<T>&, const GridPlan&, void*);
#define GRID_TESTED(T, tf32)  \
  GRID_TESTED_WITH(T, tf32, ) \
  GRID_TESTED_WITH(T, tf32, Masked)

}  // namespace cuda
}  // namespace fusedrnn
