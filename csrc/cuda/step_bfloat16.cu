#include "step.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_STEP(__nv_bfloat16)

}  // namespace cuda
}  // namespace fusedrnn
