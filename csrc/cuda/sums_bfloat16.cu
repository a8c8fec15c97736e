#include "sums.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_SUMS(__nv_bfloat16)

}  // namespace cuda
}  // namespace fusedrnn
