#include <algorithm>

#include "internal.h"

namespace emulator {

Time now = 1;

uint64_t thread_group(ThreadId id) { return id; }
uint64_t warp_group(ThreadId id) { return uint64_t(1) << 32 | id >> 5; }
uint64_t block_group(ThreadId id) { return uint64_t(2) << 32 | block_of(id); }

bool Knowledge::covers(ThreadId who, Time when) const {
  const auto later = [&](uint64_t group) {
    const auto entry = until.find(group);
    return entry != until.end() && when < entry->second;
  };
  return later(block_group(who)) || later(warp_group(who)) || later(thread_group(who));
}
void Knowledge::learn(uint64_t group, Time time) {
  Time& known = until[group];
  known = std::max(known, time);
}
void Knowledge::learn(const Knowledge& other) {
  for (const auto& [group, time] : other.until) learn(group, time);
}

bool happened_before(ThreadId who, Time when) {
  const Thread& t = *running;
  if (who == t.id || when < current_launch->ordered_before) return true;
  const Block& block = *t.block;
  if (block_of(who) == block.number) {
    if (when < block.last_barrier) return true;
    const unsigned rank = who - (block.number << kBlockShift);
    const Warp& warp = block.warps[t.warp];
    if (rank / 32 == t.warp &&
        (when < warp.together || (!warp.pairs.empty() && when < warp.pairs[t.lane * 32 + rank % 32])))
      return true;
  }
  return (t.acquired && t.acquired->covers(who, when)) || block.known.covers(who, when);
}

// ---------------------------------------------------------------------------------------------- barriers

void warp_met(Warp& warp, Thread* const* lanes, unsigned mask) {
  if (!kChecked) return;
  ++now;
  if (mask == warp.live) {
    warp.together = now;
  } else {
    warp.pairs.resize(32 * 32);
    Time joined[32] = {};
    for (int j = 0; j < 32; ++j)
      for (int k = 0; k < 32 && mask >> j & 1; ++k) joined[k] = std::max(joined[k], warp.pairs[j * 32 + k]);
    for (int j = 0; j < 32; ++j)
      for (int k = 0; k < 32 && mask >> j & 1; ++k) warp.pairs[j * 32 + k] = mask >> k & 1 ? now : joined[k];
  }
  std::shared_ptr<Knowledge> all;
  const auto each = [&](const auto& f) {
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) f(*lanes[i]);
  };
  each([&](Thread& t) {
    if (!t.acquired) return;
    if (!all) all = std::make_shared<Knowledge>();
    all->learn(*t.acquired);
  });
  if (all) each([&](Thread& t) { t.acquired = all; });
}

void block_met(Block& block, const std::vector<Thread*>& threads) {
  block.last_barrier = ++now;
  for (Thread* t : threads)
    if (t->acquired) block.known.learn(*t->acquired), t->acquired = nullptr;
}

void grid_met() {
  current_launch->ordered_before = ++now;
  for (const auto& block : current_launch->blocks) block->known.until.clear();
  for (Thread& t : current_launch->threads) t.acquired = nullptr;
}

// ---------------------------------------------------------------------------------------------- release, acquire

namespace {

struct Released {
  Knowledge known;
  Time at = 0;
};
std::unordered_map<const void*, Released> released;

}  // namespace

void release([[maybe_unused]] const void* p) {
#if defined(EMULATOR_CHECKED)
  InRuntime guard;
  mark_released(p);
  const Thread& t = *running;
  const Warp& warp = t.block->warps[t.warp];
  Released& r = released[p];
  r.known.learn(t.block->known);
  if (t.acquired) r.known.learn(*t.acquired);
  r.known.learn(block_group(t.id), t.block->last_barrier);
  r.known.learn(warp_group(t.id), warp.together);
  for (unsigned i = 0; i < 32 && !warp.pairs.empty(); ++i)
    r.known.learn(thread_group(t.id - t.lane + i), warp.pairs[t.lane * 32 + i]);
  r.known.learn(thread_group(t.id), r.at = ++now);
#endif
}

void acquire(const void* p) {
  if (!kChecked) return;
  InRuntime guard;
  Thread& t = *running;
  const auto r = released.find(p);
  if (r == released.end() || (t.acquired_from == p && t.acquired_at == r->second.at)) return;
  t.acquired_from = p, t.acquired_at = r->second.at;
  auto all = std::make_shared<Knowledge>();
  if (t.acquired) *all = *t.acquired;
  all->learn(r->second.known);
  t.acquired = all;
}

void forget_release(const void* p) { released.erase(p); }
void forget_releases() { released.clear(); }

}  // namespace emulator
