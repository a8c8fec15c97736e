#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

extern template struct GridKernels<float, true>;  // grid_tf32.cu
FUSEDRNN_GRID(float)

}  // namespace cuda
}  // namespace fusedrnn
