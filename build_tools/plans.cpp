// Prints how csrc/cuda would run a layer, by its own headers, for cuda_limits.py: a line of names, then a line of
// numbers for each line of standard input.
#include <iostream>

#include "../csrc/cuda/select.h"

using namespace fusedrnn::cuda;

int main() {
  std::cout << "chosen fits kind teams blocks rows units groups chunks slots shared_slots shared_bytes rows_of_thread "
               "groups_of_threads threads "
               "weights depth tensor_cores\n";
  int backward, gates, type;
  int64_t T, B, H;
  Limits limits{0, 0, 0, true};
  while (std::cin >> backward >> gates >> type >> T >> B >> H >> limits.sm_count >> limits.shared_bytes >>
         limits.capability) {
    const Asked a{backward != 0, gates, ValueType(type), T, B, H};
    const GridPlan p = grid_plan_for(a, limits).plan;
    const BlockShape s = block_shape_for(a, limits);
    const int bytes = a.type_bytes();
    for (const int64_t n :
         {int64_t(select(a, limits, nullptr).algorithm), int64_t(p.fits), int64_t(p.kind), int64_t(p.teams),
          int64_t(p.team_blocks), p.rows, int64_t(p.units), int64_t(p.groups), int64_t(p.chunks), int64_t(p.slots),
          int64_t(p.shared_slots), p.shared_bytes, int64_t(s.rows_per_thread), int64_t(s.groups),
          int64_t(block_units(H)), block_weights(a.backward, gates, bytes, H) * bytes, a.depth(),
          int64_t(tensor_cores(a.type, limits.capability))})
      std::cout << n << ' ';
    std::cout << '\n';
  }
}
