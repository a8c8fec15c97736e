#include "grid_tested.cuh"

namespace fusedrnn {
namespace cuda {

GRID_TESTED(__half, false)
GRID_TESTED(__nv_bfloat16, false)

}  // namespace cuda
}  // namespace fusedrnn
