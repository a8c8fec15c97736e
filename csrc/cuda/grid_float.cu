#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

extern template struct GridKernels<float, true, false>;  // grid_tf32.cu
extern template struct GridKernels<float, true, true>;
FUSEDRNN_GRID(float)

}  // namespace cuda
}  // namespace fusedrnn
