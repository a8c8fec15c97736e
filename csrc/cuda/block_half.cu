#include "block.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_BLOCK(__half)

}  // namespace cuda
}  // namespace fusedrnn
