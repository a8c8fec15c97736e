#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_GRID(__nv_bfloat16)

}  // namespace cuda
}  // namespace fusedrnn
