#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

template struct GridKernels<float, true, true>;

}  // namespace cuda
}  // namespace fusedrnn
