// Threads that work on one sequence together and meet once a step.
//
// The runner may give fewer threads than were asked for, or run the pieces one after the other. So a piece first
// enrols; the team closes as soon as every piece has come, or when those who came have waited long enough; who comes
// later finds it closed and does nothing. Work is divided among the members. A result does not depend on how many they
// are, since every value is computed by one member in one order.
#pragma once
#include <sched.h>
#include <stdint.h>
#include <time.h>

namespace fusedrnn {
namespace {

static inline void relax(int64_t& spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
  // With more threads than cores the one waited for may not be running: let it.
  if (++spins % 256 == 0) sched_yield();
}

class Team {
 public:
  explicit Team(int64_t pieces) : pieces_(pieces) {}

  // Number of the member that runs `pieces` of the pieces, or -1 for one who came too late. Returns when closed.
  int64_t enrol(int64_t pieces) {
    const uint64_t before = __atomic_fetch_add(&state_, kMember + uint64_t(pieces), __ATOMIC_ACQ_REL);
    if (before & kClosed) return -1;
    int64_t spins = 0;
    const int64_t start = now();
    for (;;) {
      uint64_t s = __atomic_load_n(&state_, __ATOMIC_ACQUIRE);
      if (s & kClosed) break;
      if (int64_t(s & kPieces) == pieces_ || (spins % 64 == 63 && now() - start > kPatience)) {
        if (__atomic_compare_exchange_n(&state_, &s, s | kClosed, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
          __atomic_store_n(&members_, int64_t((s / kMember) & kMemberMask), __ATOMIC_RELEASE);
          break;
        }
        continue;
      }
      relax(spins);
    }
    while (__atomic_load_n(&members_, __ATOMIC_ACQUIRE) == 0) relax(spins);
    return int64_t((before / kMember) & kMemberMask);
  }

  int64_t members() const { return members_; }

  // Everyone's writes before are seen by everyone after.
  void barrier() {
    if (members_ == 1) return;
    const uint32_t generation = __atomic_load_n(&generation_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&waiting_, 1, __ATOMIC_ACQ_REL) == members_) {
      __atomic_store_n(&waiting_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&generation_, generation + 1, __ATOMIC_RELEASE);
      return;
    }
    int64_t spins = 0;
    while (__atomic_load_n(&generation_, __ATOMIC_ACQUIRE) == generation) relax(spins);
  }

 private:
  static constexpr uint64_t kPieces = 0xffffff, kMember = 1u << 24, kMemberMask = 0xffffff;
  static constexpr uint64_t kClosed = uint64_t(1) << 63;
  static constexpr int64_t kPatience = 2000000;  // ns: some time slices of a busy machine

  static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
  }

  // One cache line each: those who wait must not slow those who arrive.
  alignas(64) uint64_t state_ = 0;
  int64_t pieces_;
  int64_t members_ = 0;
  alignas(64) int64_t waiting_ = 0;
  alignas(64) uint32_t generation_ = 0;
};

}  // namespace
}  // namespace fusedrnn
