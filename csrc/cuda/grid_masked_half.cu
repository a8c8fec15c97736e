#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

template struct GridKernels<__half, false, true>;

}  // namespace cuda
}  // namespace fusedrnn
