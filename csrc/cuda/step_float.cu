#include "step.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_STEP(float)

}  // namespace cuda
}  // namespace fusedrnn
