#include "grid_run.cuh"

namespace fusedrnn {
namespace cuda {

FUSEDRNN_GRID(__half)

}  // namespace cuda
}  // namespace fusedrnn
