#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

template struct GridKernels<float, true, false>;

}  // namespace cuda
}  // namespace fusedrnn
