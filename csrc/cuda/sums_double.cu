#include "sums.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_SUMS(double)

}  // namespace cuda
}  // namespace fusedrnn
