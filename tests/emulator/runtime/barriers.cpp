#include <cstring>

#include "internal.h"

namespace emulator {
namespace {

bool same_place(const Place& a, const Place& b) { return a.line == b.line && !std::strcmp(a.file, b.file); }

void try_block(Block& block) {
  if (!block.arrived || block.arrived < block.live) return;
  std::vector<Thread*> here;
  int holding = 0;
  for (unsigned i = 0; i < block.size; ++i)
    if (block.threads[i].state == Thread::kAtBlock) here.push_back(&block.threads[i]);
  for (Thread* t : here) {
    holding += t->predicate;
    if (!same_place(t->place, here[0]->place))
      report("synccheck", t->place, "threads of one block meet at different barriers, here and at line %d",
             here[0]->place.line);
  }
  if (block.live < block.size)
    report("synccheck", here[0]->place, "a barrier when %u of %u threads of the block have left the kernel",
           block.size - block.live, block.size);
  for (Thread* t : here) t->holding = holding;
  block.arrived = 0;
  block_met(block, here);
  make_ready(here);
}

void try_grid() {
  LaunchState& launch = *current_launch;
  if (!launch.at_grid || launch.at_grid < launch.live) return;
  std::vector<Thread*> here;
  for (Thread& t : launch.threads)
    if (t.state == Thread::kAtGrid) here.push_back(&t);
  if (launch.live < launch.threads.size())
    report("synccheck", here[0]->place, "a barrier of the grid when some threads have left the kernel");
  launch.at_grid = 0;
  grid_met();
  make_ready(here);
}

// What the lanes of `mask` wait at is the same for all, so that it can be done.
bool agree(const Thread& a, Thread* const* lanes, unsigned mask) {
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && lanes[i]->mask != a.mask) return false;  // with others for now
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& t = *lanes[i];
    if (!same_place(t.place, a.place)) {
      report("synccheck", t.place, "lanes of one warp meet at different places: %s here, %s at line %d", t.waits_at,
             a.waits_at, a.place.line);
      if (t.collective.exchange != a.collective.exchange) return false;
    }
    if (t.collective.reads_lane && !(mask >> t.own.number & 1)) {
      report("synccheck", t.place, "%s: lane %u reads lane %d, which does not take part", t.waits_at, i, t.own.number);
      t.own.number = int(i);
    }
  }
  return true;
}

void try_warp(Thread& a) {
  Block& block = *a.block;
  Warp& warp = block.warps[a.warp];
  const unsigned mask = a.mask & warp.live;
  if (mask & ~warp.waiting) return;
  Thread* lanes[32] = {};
  for (unsigned i = 0; i < 32 && a.warp * 32 + i < block.size; ++i) lanes[i] = &block.threads[a.warp * 32 + i];
  if (!agree(a, lanes, mask)) return;
  Lane values[32] = {};
  std::vector<Thread*> here;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) values[i] = lanes[i]->own, here.push_back(lanes[i]);
  if (a.collective.exchange && a.mask != mask)
    report("synccheck", a.place, "%s with mask %08x when of these lanes only %08x are in the kernel", a.waits_at,
           a.mask, mask);
  else if (a.collective.exchange)
    a.collective.exchange(values, mask);
  if (a.collective.orders_memory) warp_met(warp, lanes, mask);
  warp.waiting &= ~mask;
  make_ready(here);
}

}  // namespace

int block_barrier(bool predicate, const char* what, Place here) {
  InRuntime guard;
  Thread& t = *running;
  t.waits_at = what, t.place = here, t.predicate = predicate;
  t.state = Thread::kAtBlock;
  ++t.block->arrived;
  try_block(*t.block);
  wait_as(t.state);
  return t.holding;
}

void grid_barrier(Place here) {
  InRuntime guard;
  Thread& t = *running;
  if (!current_launch->cooperative)
    report("synccheck", here, "a barrier of the grid in a launch that is not cooperative");
  t.waits_at = "grid.sync", t.place = here;
  t.state = Thread::kAtGrid;
  ++current_launch->at_grid;
  try_grid();
  wait_as(t.state);
}

void collective(const Collective& what, unsigned mask, const Lane& own, Place here) {
  InRuntime guard;
  Thread& t = *running;
  if (!(mask >> t.lane & 1)) {
    report("synccheck", here, "%s: the mask %08x lacks the lane that calls, %u", what.name, mask, t.lane);
    return;
  }
  t.waits_at = what.name, t.place = here, t.collective = what, t.mask = mask, t.own = own;
  t.state = Thread::kAtWarp;
  t.block->warps[t.warp].waiting |= 1u << t.lane;
  try_warp(t);
  wait_as(t.state);
}

// Those who wait may wait for nobody else now.
void thread_left_barriers(Thread& t) {
  Block& block = *t.block;
  Warp& warp = block.warps[t.warp];
  --block.live;
  warp.live &= ~(1u << t.lane);
  for (unsigned i = 0; i < 32; ++i)
    if (warp.waiting >> i & 1) try_warp(block.threads[t.warp * 32 + i]);
  try_block(block);
  try_grid();
}

}  // namespace emulator
