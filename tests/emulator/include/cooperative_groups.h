// The part of cooperative groups that the kernels use.
#pragma once
#include "emulator/language.h"

namespace cooperative_groups {

struct grid_group {
  void sync(EMULATOR_HERE) const { emulator::grid_barrier(here); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
