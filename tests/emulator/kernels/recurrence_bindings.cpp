#include "csrc/cuda/select.h"
#include "emulator/bindings.h"
#include "recurrence.h"

namespace {

using namespace fusedrnn::cuda;

// Name, rows per thread, groups, error.
pybind11::tuple select_algorithm(bool backward, int gates, int type_bytes, int64_t T, int64_t B, int64_t H,
                                 int sm_count, int shared_bytes, const char* name) {
  const Choice c = select({backward, gates, type_bytes, T, B, H}, {sm_count, shared_bytes}, name);
  return pybind11::make_tuple(c.algorithm == Algorithm::kBlock ? "block" : "step", c.block.rows_per_thread,
                              c.block.groups, c.error);
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "run_forward", &run_forward);
  emulator::bind_launch(m, "run_backward", &run_backward);
  m.def("block_shared_bytes", &block_shared_bytes);
  m.def("select", &select_algorithm);
}
