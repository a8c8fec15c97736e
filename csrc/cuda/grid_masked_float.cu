#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

template struct GridKernels<float, false, true>;

}  // namespace cuda
}  // namespace fusedrnn
