#include "grid_cases.cuh"

cudaError_t grid_tf32(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  return fusedrnn::cuda::run_cell<float, true>(g, forward, backward);
}
