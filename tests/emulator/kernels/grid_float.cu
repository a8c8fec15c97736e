#include "grid_cases.cuh"

cudaError_t grid_float(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  return fusedrnn::cuda::run_cell<float, false>(g, forward, backward);
}
