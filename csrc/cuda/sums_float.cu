#include "sums.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_SUMS(float)

}  // namespace cuda
}  // namespace fusedrnn
