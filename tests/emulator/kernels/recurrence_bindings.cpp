#include "csrc/cuda/select.h"
#include "emulator/bindings.h"
#include "grid_tested.h"
#include "recurrence.h"

namespace {

using namespace fusedrnn::cuda;
using namespace pybind11::literals;

pybind11::dict plan_to_python(const GridPlan& p) {
  return pybind11::dict("fits"_a = p.fits, "kind"_a = int(p.kind), "teams"_a = p.teams, "rows"_a = p.rows,
                        "blocks"_a = p.team_blocks, "units"_a = p.units, "groups"_a = p.groups, "chunks"_a = p.chunks,
                        "slots"_a = p.slots, "shared_slots"_a = p.shared_slots, "shared_bytes"_a = p.shared_bytes,
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

// Of a shape as grid_tested.h numbers them.
GridPlan plan_of(int shape, int blocks, int64_t shared_bytes, int teams, int64_t B, int64_t H, int gates,
                 int value_bytes, bool backward) {
  return grid_plan_of(shape, {blocks, shared_bytes}, {B, H, gates, value_bytes, backward}, teams);
}
pybind11::dict grid_plan(int shape, int blocks, int64_t shared_bytes, int teams, int64_t B, int64_t H, int gates,
                         int value_bytes, bool backward) {
  return plan_to_python(plan_of(shape, blocks, shared_bytes, teams, B, H, gates, value_bytes, backward));
}
int resident(int cell, int type, bool backward, bool masked, int shape, int blocks, int64_t shared_bytes, int teams,
             int64_t B, int64_t H, int gates, int value_bytes) {
  return is_resident(cell, type, backward, masked,
                     plan_of(shape, blocks, shared_bytes, teams, B, H, gates, value_bytes, backward));
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "run_forward", &run_forward);
  emulator::bind_launch(m, "run_backward", &run_backward);
  emulator::bind_launch(m, "run_bias_gradients", &run_bias_gradients);
  m.def("bias_parts", &fusedrnn::cuda::bias_parts);
  m.def("block_shared_bytes", &block_shared_bytes);
  m.def("grid_plan", &grid_plan);
  m.def("grid_resident", &resident);
  m.def("select", &select_algorithm);
}
