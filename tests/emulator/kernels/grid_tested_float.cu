#include "grid_tested.cuh"

namespace fusedrnn {
namespace cuda {

GRID_TESTED(float, false)
GRID_TESTED(float, true)

}  // namespace cuda
}  // namespace fusedrnn
