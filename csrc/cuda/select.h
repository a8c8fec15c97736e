// Which kernels serve a shape: a pure function of numbers, so that tests ask it about devices that are not there.
#pragma once
#include <string>

#include "cost.h"

namespace fusedrnn {
namespace cuda {

enum class Algorithm { kStep, kBlock, kGrid };

struct Choice {
  Algorithm algorithm;
  BlockShape block;   // of kBlock
  GridPlan grid;      // of kGrid. Where grid_resident denies it, select again for a device that is not cooperative
  std::string error;  // not empty: what was asked for by name cannot be
};

// Fewest rows a block that still give every SM no more than one block, since a step takes as long as its slowest block
// and each row adds to it; then as many as fit. No rows: the block kernels cannot run this.
inline BlockShape block_shape_for(const Asked& a, const Limits& limits) {
  const BlockShape none{0, 0};
  if (a.type == ValueType::kFloat64 || a.B < 1 || a.H < 1 || a.H > kBlockThreads) return none;
  const auto fits = [&](const BlockShape& s) {
    return block_shared_bytes(a.backward, a.gates, a.type_bytes(), a.H, s.rows()) <= limits.shared_bytes;
  };
  const int most_groups = kBlockThreads / block_units(a.H);
  const int64_t wanted = divide_up(a.B, limits.sm_count);
  BlockShape best{1, 1};
  if (!fits(best)) return none;
  // A group more hides latency; rows that share a load of w_hh come when there are no more groups to have.
  for (const int rows : {1, kManyRows})
    for (int groups = 1; groups <= most_groups; ++groups) {
      const BlockShape next{rows, groups};
      if (best.rows() < wanted && next.rows() > best.rows() && fits(next)) best = next;
    }
  return best;
}

struct GridChoice {
  GridPlan plan;
  double cost;
};

// The cheapest plan of this shape with so many teams and blocks of a team at most, if it is cheaper.
template <class Shape>
void take_cheaper(const Asked& a, const Limits& limits, int teams, int team_blocks, GridChoice& best) {
  const GridPlan plan =
      grid_blocks<Shape>({team_blocks, limits.shared_bytes}, {a.B, a.H, a.gates, a.type_bytes(), a.backward}, teams);
  if (!plan.fits) return;
  const double cost = grid_cost<Shape>(a, limits, plan);
  if (!best.plan.fits || cost < best.cost) best = {plan, cost};
}

// Fewer are not worth a team: a product takes as long for four as for one.
constexpr int64_t kLeastRows = 4;

// One block a multiprocessor. More teams have fewer rows each, and each block has more units. It may be that none fits.
inline GridChoice grid_plan_for(const Asked& a, const Limits& limits) {
  GridChoice best{};
  if (a.type == ValueType::kFloat64 || !limits.cooperative || a.B < 1) return best;
  const int64_t most = std::min<int64_t>(divide_up(a.B, kLeastRows), limits.sm_count);
  for (int teams = 1; teams <= most; teams += teams < 4 ? 1 : teams / 2)
    for (int blocks = limits.sm_count / teams; blocks > 0 && blocks >= limits.sm_count / teams / 4; blocks /= 2) {
      take_cheaper<GridNarrow>(a, limits, teams, blocks, best);
      take_cheaper<GridWide>(a, limits, teams, blocks, best);
      take_cheaper<GridBroad>(a, limits, teams, blocks, best);
    }
  return best;
}

// Why an algorithm that is not step cannot run something.
inline std::string why_not(const std::string& name, const Asked& a, const Limits& limits) {
  const std::string start = "the algorithm " + name + " does not run ", H = "hidden size " + std::to_string(a.H);
  if (a.type == ValueType::kFloat64) return start + "float64";
  if (name == "block")
    return start + H + " on this device: w_hh does not fit in the shared memory of a block, or units are more than " +
           std::to_string(kBlockThreads);
  if (!limits.cooperative) return start + "on this device: it does not launch cooperatively";
  return start + "batch size " + std::to_string(a.B) + " with " + H +
         " on this device: the states of a block's units do not fit in its shared memory";
}

// name: of the algorithm that is wanted, or null or empty for the one that is estimated to be fastest.
inline Choice select(const Asked& a, const Limits& limits, const char* name) {
  const std::string wanted = name ? name : "";
  const Choice step{Algorithm::kStep, {0, 0}, {}, ""};
  if (!wanted.empty() && wanted != "step" && wanted != "block" && wanted != "grid")
    return {Algorithm::kStep, {0, 0}, {}, "there is no algorithm " + wanted + ": it is one of step, block, grid"};
  // Nothing to run is no failure of what was asked for.
  if (wanted == "step" || a.B < 1 || a.H < 1) return step;
  const Choice block{Algorithm::kBlock, block_shape_for(a, limits), {}, ""};
  const GridChoice cheapest = grid_plan_for(a, limits);
  const Choice grid{Algorithm::kGrid, {0, 0}, cheapest.plan, ""};
  const bool can_block = block.block.rows() > 0, can_grid = grid.grid.fits;
  if (wanted == "block" && can_block) return block;
  if (wanted == "grid" && can_grid) return grid;
  if (!wanted.empty()) return {Algorithm::kStep, {0, 0}, {}, why_not(wanted, a, limits)};
  // One step has nothing to keep on chip.
  if (a.T < 2) return step;
  const double step_takes = step_cost(a, limits);
  const double block_takes = can_block ? block_cost(a, limits, block.block) : step_takes;
  const double grid_takes = can_grid ? cheapest.cost : step_takes;
  if (block_takes < step_takes && block_takes <= grid_takes) return block;
  return grid_takes < step_takes ? grid : step;
}

}  // namespace cuda
}  // namespace fusedrnn
