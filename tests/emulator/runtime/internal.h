// What the files of the runtime share.
//
//   fibers.cpp     stacks, and the switch from one to another
//   launch.cpp     a launch: its threads, and who runs next
//   barriers.cpp   barriers of blocks and of the grid, and what the lanes of a warp do together
//   memory.cpp     device memory, the CUDA runtime's functions, copies under way
//   checker.cpp    what is known of every cell of device memory, and the verdict on each access
//   order.cpp      which past events are ordered before the running thread
//   reports.cpp    what was found, and where
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "../include/emulator/control.h"
#include "../include/emulator/runtime.h"

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

namespace emulator {

#if defined(EMULATOR_CHECKED)
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

// ---------------------------------------------------------------------------------------------- order of events
//
// A clock counts the synchronisations of all launches. An event is known by its thread and the time on the clock, and
// "before time s" holds for whole groups of threads at once, because a barrier teaches all of them the same.

using Time = uint32_t;
extern Time now;

// Thread numbers have the block in their upper bits, so that warps and blocks are numbered alike.
using ThreadId = uint32_t;
constexpr int kBlockShift = 10;  // a block has up to 1024 threads
inline ThreadId block_of(ThreadId id) { return id >> kBlockShift; }

// Until when the events of threads, warps and blocks elsewhere are ordered before those who hold this.
struct Knowledge {
  std::unordered_map<uint64_t, Time> until;

  bool covers(ThreadId who, Time when) const;
  void learn(const Knowledge& other);
  void learn(uint64_t group, Time time);
};
uint64_t thread_group(ThreadId id);
uint64_t warp_group(ThreadId id);
uint64_t block_group(ThreadId id);

// ---------------------------------------------------------------------------------------------- threads

struct AsyncCopy {
  char* to;
  const char* from;
  size_t bytes;
  Place place;
};

struct Block;
struct Thread {
  enum State { kReady, kAtBlock, kAtWarp, kAtGrid, kDone };

  uint3 index;
  unsigned rank, lane, warp;  // in the block; lane and number of the warp
  ThreadId id;
  Block* block;
  void* stack_pointer;
  char* stack;  // its lowest byte
  void* sanitizer_stack = nullptr;

  State state = kReady;
  const char* waits_at = "";  // what, and where
  Place place;
  // At a barrier of the block.
  bool predicate = false;
  int holding = 0;  // the answer
  // At a collective of the warp.
  Collective collective{};
  Lane own{};
  unsigned mask = 0;

  std::shared_ptr<const Knowledge> acquired;
  const void* acquired_from = nullptr;  // the last one, and which state of it
  Time acquired_at = 0;
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;

  // What the last poll saw. Idle: in its last turn the thread saw nothing new and did nothing.
  const void* polled = nullptr;
  uint64_t seen = 0;
  bool idle = false;
  uint32_t reads = 0;  // since it did something else
};

struct SharedPart {
  const void* key;  // of a static array; of a dynamic one its offset
  char* p;
  size_t bytes;
  std::string name;
};

struct Warp {
  unsigned live = 0, waiting = 0;
  Time together = 0;        // when all live lanes last met at a __syncwarp
  std::vector<Time> pairs;  // [lane][lane]: the same for parts of the warp
};

struct Block {
  uint3 index;
  unsigned number, size, live, arrived = 0;
  Thread* threads;
  std::vector<Warp> warps;
  std::vector<SharedPart> statics, parts;
  size_t dynamic_bytes = 0;
  Time last_barrier = 0;
  Knowledge known;  // of other blocks, by all threads
};

struct LaunchState {
  bool cooperative;
  void (*body)(void*);
  void* arguments;
  size_t argument_bytes;
  std::vector<std::unique_ptr<Block>> blocks;  // that are resident
  std::vector<Thread> threads;
  unsigned live = 0, at_grid = 0;
  Time began = 0;
  Time ordered_before = 0;  // by the launch or the last barrier of the grid
  std::vector<Thread*> turn, next_turn;
  bool stopped = false;  // by an access that a GPU would not survive
};
extern LaunchState* current_launch;
extern Thread* running;
extern std::mt19937 random_numbers;

// Accesses by the runtime itself are nobody's.
extern int in_runtime;
struct InRuntime {
  InRuntime() { ++in_runtime; }
  ~InRuntime() { --in_runtime; }
};

// ---------------------------------------------------------------------------------------------- fibers.cpp

void prepare_stacks(size_t threads);
void start(Thread& t, size_t stack_number, void (*main)());
void fiber_began();
bool stack_intact(const Thread& t);
bool on_stack(const Thread& t, const void* p);
void switch_to(Thread& t);
void switch_to_scheduler();

// ---------------------------------------------------------------------------------------------- launch.cpp,
// barriers.cpp

void make_ready(std::vector<Thread*> threads);
// The running thread lets others go on, until it is made ready again.
void wait_as(Thread::State state);
void stop_launch();
// The running thread goes on in the next turn.
void preempt(bool idle);
void thread_left_barriers(Thread& t);

// ---------------------------------------------------------------------------------------------- order.cpp

bool happened_before(ThreadId who, Time when);
void warp_met(Warp& warp, Thread* const* lanes, unsigned mask);
void block_met(Block& block, const std::vector<Thread*>& threads);
void grid_met();
// `p` was written by something else than a release: nothing can be acquired from it.
void forget_release(const void* p);
void forget_releases();

// ---------------------------------------------------------------------------------------------- memory.cpp

// All of device memory in the checked build lies in one arena, so that what is known of a cell is found at once.
constexpr size_t kArenaBytes = size_t(1) << 32;
extern char* arena;

char* device_allocate(size_t bytes);
void device_free(char* p);
// "byte 12 of the shared array tile of 10 bytes", for the nearest array before p.
std::string describe(const char* p);

// ---------------------------------------------------------------------------------------------- checker.cpp

void prepare_cells();
void mark_allocated(const char* p, size_t bytes);
void mark_freed(const char* p, size_t bytes);
void mark_initialised(const char* p, size_t bytes);  // by the host
void mark_released(const void* p);
void mark_in_flight(const char* p, size_t bytes);
void mark_landed(const char* p, size_t bytes);
void check(const void* p, size_t bytes, Access access, const Place& place, bool constant = false);

// ---------------------------------------------------------------------------------------------- reports.cpp

void report(const char* kind, const Place& place, const char* format, ...) __attribute__((format(printf, 3, 4)));
std::string name_of_thread(const Thread& t);
std::string name_of_thread(ThreadId id);
size_t reports_so_far();

}  // namespace emulator
