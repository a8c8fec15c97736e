#include "sums.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_SUMS(__half)

}  // namespace cuda
}  // namespace fusedrnn
