#include "grid_cases.cuh"

cudaError_t grid_half(const GridCase& g, const GridForwardTensors* forward, const GridBackwardTensors* backward) {
  return fusedrnn::cuda::run_cell<__half, false>(g, forward, backward);
}
