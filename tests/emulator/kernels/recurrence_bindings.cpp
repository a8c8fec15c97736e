#include "csrc/cuda/block_shape.h"
#include "emulator/bindings.h"
#include "recurrence.h"

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "run_forward", &run_forward);
  emulator::bind_launch(m, "run_backward", &run_backward);
  m.def("block_shared_bytes", &fusedrnn::cuda::block_shared_bytes);
}
