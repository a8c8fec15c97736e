#include "csrc/cuda/select.h"
#include "emulator/bindings.h"
#include "recurrence.h"

namespace {

using namespace fusedrnn::cuda;
using namespace pybind11::literals;

pybind11::dict plan_to_python(const GridPlan& p) {
  return pybind11::dict("fits"_a = p.fits, "wide"_a = p.wide, "blocks"_a = p.blocks, "units"_a = p.units,
                        "groups"_a = p.groups, "chunks"_a = p.chunks, "slots"_a = p.slots,
                        "shared_slots"_a = p.shared_slots, "shared_bytes"_a = p.shared_bytes,
                        "workspace_bytes"_a = p.workspace_bytes);
}

// Algorithm, rows per thread, groups, plan of grid, error.
pybind11::tuple select_algorithm(bool backward, int gates, int type, int64_t T, int64_t B, int64_t H, int sm_count,
                                 int shared_bytes, int capability, bool cooperative, const char* name) {
  const Choice c =
      select({backward, gates, ValueType(type), T, B, H}, {sm_count, shared_bytes, capability, cooperative}, name);
  const char* names[] = {"step", "block", "grid"};
  return pybind11::make_tuple(names[int(c.algorithm)], c.block.rows_per_thread, c.block.groups, plan_to_python(c.grid),
                              c.error);
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "run_forward", &run_forward);
  emulator::bind_launch(m, "run_backward", &run_backward);
  m.def("block_shared_bytes", &block_shared_bytes);
  m.def("select", &select_algorithm);
}
