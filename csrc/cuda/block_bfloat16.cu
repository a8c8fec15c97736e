#include "block.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_BLOCK(__nv_bfloat16)

}  // namespace cuda
}  // namespace fusedrnn
