#include "csrc/cuda/grid_plan.h"
#include "emulator/bindings.h"
#include "grid_cases.h"

namespace {

using Run = cudaError_t (*)(const GridCase&, const GridForwardTensors*, const GridBackwardTensors*);
constexpr Run kTypes[] = {grid_float, grid_tf32, grid_half, grid_bfloat16};

cudaError_t grid_forward(int type, int cell, int shape, int blocks, int shared_bytes, int T, int B, int H, bool reverse,
                         bool batch_first, const void* x, void* y, void* c, void* saved, const void* h0, const void* c0,
                         void* h_n, void* c_n, const void* w_hh, const void* b_ih, const void* b_hh, void* workspace) {
  const GridForwardTensors tensors{x, y, c, saved, h0, c0, h_n, c_n, w_hh, b_ih, b_hh, workspace};
  return kTypes[type]({cell, shape, blocks, shared_bytes, T, B, H, reverse, batch_first}, &tensors, nullptr);
}

cudaError_t grid_backward(int type, int cell, int shape, int blocks, int shared_bytes, int T, int B, int H,
                          bool reverse, bool batch_first, const void* saved, const void* y, const void* c,
                          const void* h0, const void* c0, const void* dy, const void* dh_n, const void* dc_n,
                          const void* w_hh, void* delta, void* dh0, void* dc0, void* workspace) {
  const GridBackwardTensors tensors{saved, y, c, h0, c0, dy, dh_n, dc_n, w_hh, delta, dh0, dc0, workspace};
  return kTypes[type]({cell, shape, blocks, shared_bytes, T, B, H, reverse, batch_first}, nullptr, &tensors);
}

using namespace fusedrnn::cuda;

// What a plan says to Python, of a shape as grid_cases.h numbers them, or of the shape that is shipped for it.
pybind11::dict plan(int shape, int blocks, int64_t shared_bytes, int64_t B, int64_t H, int gates, int value_bytes,
                    bool backward) {
  const GridLimits limits{blocks, shared_bytes};
  const GridProblem problem{B, H, gates, value_bytes, backward};
  const GridPlan p = shape == 0   ? grid_blocks<GridShape<2, 2, 1>>(limits, problem)
                     : shape == 1 ? grid_blocks<GridNarrow>(limits, problem)
                     : shape == 2 ? grid_blocks<GridWide>(limits, problem)
                                  : grid_blocks(limits, problem);
  using namespace pybind11::literals;
  return pybind11::dict("fits"_a = p.fits, "blocks"_a = p.blocks, "units"_a = p.units, "groups"_a = p.groups,
                        "chunks"_a = p.chunks, "slots"_a = p.slots, "shared_slots"_a = p.shared_slots,
                        "shared_bytes"_a = p.shared_bytes, "workspace_bytes"_a = p.workspace_bytes);
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "grid_forward", &grid_forward);
  emulator::bind_launch(m, "grid_backward", &grid_backward);
  m.def("plan", &plan);
}
