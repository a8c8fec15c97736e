#include "block.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_BLOCK(float)

}  // namespace cuda
}  // namespace fusedrnn
