// What kernels ask of the emulator: the words of CUDA in language.h and the twins of csrc/cuda/device.cuh in device.h
// are written with these calls. The code behind them, in runtime/, is never instrumented.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// Where in the kernel something happens: a file and line, or an address in the program that tells them.
struct Place {
  const char* file = nullptr;
  int line = 0;
  const void* pc = nullptr;

  static Place of_caller(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line, nullptr};
  }
};
// The last parameter of a function: its value is the line that calls it.
#define EMULATOR_HERE ::emulator::Place here = ::emulator::Place::of_caller()
// A function that acts for its caller: the checker sees what it declares, not what it does.
#define EMULATOR_UNSEEN __attribute__((noinline, no_sanitize("thread")))

// ---- the running thread
unsigned lane();
unsigned rank_in_block();

// ---- barriers
// The number of threads whose predicate held.
int block_barrier(bool predicate, const char* what, Place here);
void grid_barrier(Place here);

// ---- what the lanes of a warp do together
struct Lane {
  const void* in;
  void* out;
  int number;
};
struct Collective {
  const char* name;
  // Runs once, when all lanes of the mask are here.
  void (*exchange)(const Lane (&lanes)[32], unsigned mask);
  bool reads_lane;     // `number` is a lane that must take part
  bool orders_memory;  // only __syncwarp does
};
void collective(const Collective& what, unsigned mask, const Lane& own, Place here);

// ---- memory
// AtomicModify reads and writes: what was released to the place before can still be acquired from it.
enum class Access { Read, Write, AtomicRead, AtomicWrite, AtomicModify };
// Declares an access that is about to happen.
void touch(const void* p, size_t bytes, Access access, Place here);
// The same for a read through a cache that does not see writes of this launch.
void touch_constant(const void* p, size_t bytes, Place here);
// Of the thread whose atomic write of `p` was just declared, or that just read it.
void release(const void* p);
void acquire(const void* p);

void* static_shared(const void* key, size_t bytes, const char* name);
unsigned char* dynamic_shared();
void* dynamic_shared_part(size_t offset, size_t bytes, const char* name, Place here);

// Copies that are under way until they are waited for. They belong to the running thread.
void async_copy(void* to, const void* from, size_t bytes, Place here);
void async_commit();
void async_wait(size_t pending_groups);

// ---- scheduling
// Lets others run. `p` and `value` are what the thread is waiting to see change: when all threads that could run keep
// seeing the same, they wait for ever.
void poll(const void* p, uint64_t value, Place here);
// Ends the launch.
void trap(Place here);

}  // namespace emulator
