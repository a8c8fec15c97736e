// Which kernels serve a shape: a pure function of numbers, so that tests ask it about devices that are not there.
#pragma once
#include <string>

#include "block_shape.h"

namespace fusedrnn {
namespace cuda {

enum class Algorithm { kStep, kBlock };

// Of a device, by the attributes of the runtime API.
struct Limits {
  int sm_count;
  int shared_bytes;  // per block, for a kernel that asks for more than 48 KiB
};

// What is asked: one direction of one layer, forward or backward.
struct Asked {
  bool backward;
  int gates, type_bytes;  // 8 is double
  int64_t T, B, H;
};

struct Choice {
  Algorithm algorithm;
  BlockShape block;   // of kBlock
  std::string error;  // not empty: what was asked for by name cannot be
};

// Fewest rows a block that still give every SM no more than one block, since a step takes as long as its slowest block
// and each row adds to it; then as many as fit. No rows: the block kernels cannot run this.
inline BlockShape block_shape_for(const Asked& a, const Limits& limits) {
  const BlockShape none{0, 0};
  if (a.type_bytes == 8 || a.H < 1 || a.H > kBlockThreads) return none;
  const auto fits = [&](const BlockShape& s) {
    return block_shared_bytes(a.backward, a.gates, a.type_bytes, a.H, s.rows()) <= limits.shared_bytes;
  };
  const int most_groups = kBlockThreads / block_units(a.H);
  const int64_t wanted = (a.B + limits.sm_count - 1) / limits.sm_count;
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

// name: of the algorithm that is wanted, or null or empty for the best. The grid of blocks is one wave where it can be;
// beyond two waves the products of single steps, which use tensor cores, have caught up.
inline Choice select(const Asked& a, const Limits& limits, const char* name) {
  const std::string wanted = name ? name : "";
  const BlockShape block = block_shape_for(a, limits);
  if (wanted == "step") return {Algorithm::kStep, {0, 0}, ""};
  if (wanted == "block") {
    if (block.rows() > 0) return {Algorithm::kBlock, block, ""};
    return {Algorithm::kStep,
            {0, 0},
            a.type_bytes == 8 ? "the algorithm block does not run float64"
                              : "the algorithm block does not run hidden size " + std::to_string(a.H) +
                                    " on this device: w_hh does not fit in the shared memory of a block"};
  }
  if (!wanted.empty())
    return {Algorithm::kStep, {0, 0}, "there is no algorithm " + wanted + ": it is one of step, block"};
  const int64_t blocks = block.rows() > 0 ? (a.B + block.rows() - 1) / block.rows() : 0;
  const bool use_block = blocks > 0 && a.T > 1 && blocks <= 2 * int64_t(limits.sm_count);
  return {use_block ? Algorithm::kBlock : Algorithm::kStep, use_block ? block : BlockShape{0, 0}, ""};
}

}  // namespace cuda
}  // namespace fusedrnn
