#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

template struct GridKernels<__nv_bfloat16, false, true>;

}  // namespace cuda
}  // namespace fusedrnn
