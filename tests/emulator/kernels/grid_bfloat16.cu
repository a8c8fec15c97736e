#include "grid_cases.cuh"

cudaError_t grid_bfloat16(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  return fusedrnn::cuda::run_cell<__nv_bfloat16, false>(g, forward, backward);
}
