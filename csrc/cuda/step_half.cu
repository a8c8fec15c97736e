#include "step.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_STEP(__half)

}  // namespace cuda
}  // namespace fusedrnn
