#include "step.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_STEP(double)

}  // namespace cuda
}  // namespace fusedrnn
