#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "internal.h"

extern dim3 blockDim, gridDim;  // of fibers.cpp

namespace emulator {

LaunchState* current_launch;
Thread* running;
std::mt19937 random_numbers;
Schedule schedule;
int in_runtime;

unsigned lane() { return running->lane; }
unsigned rank_in_block() { return running->rank; }

// ---------------------------------------------------------------------------------------------- who runs next
//
// Threads run in turns: each that is ready once, in the order that the schedule asks for. Who becomes ready meanwhile
// waits for the next turn.

void make_ready(std::vector<Thread*> threads) {
  for (Thread* t : threads) t->state = Thread::kReady;
  auto& next = current_launch->next_turn;
  next.insert(next.end(), threads.begin(), threads.end());
}

namespace {

void let_others_run() {
  const int outer = in_runtime;
  in_runtime = 0;
  switch_to_scheduler();
  in_runtime = outer;
}

}  // namespace

void wait_as(Thread::State state) {
  running->state = state;
  running->idle = false;
  running->reads = 0;
  let_others_run();
}

void stop_launch() {
  current_launch->stopped = true;
  wait_as(Thread::kDone);
}

void trap(Place here) {
  report("trap", here, "the kernel stops itself");
  stop_launch();
}

void poll(const void* p, uint64_t value, Place here) {
  Thread& t = *running;
  t.idle = !p || (p == t.polled && value == t.seen);
  if (p) t.polled = p, t.seen = value;
  t.waits_at = "a loop that nothing ends";
  t.place = here;
  make_ready({&t});
  let_others_run();
}

void preempt(bool idle) {
  running->idle = idle;
  make_ready({running});
  let_others_run();
}

namespace {

void report_deadlock() {
  const LaunchState& launch = *current_launch;
  int left = 4;
  // Collectives of a warp first: they are usually the cause of the rest.
  for (const bool warps : {true, false})
    for (const Thread& t : launch.threads) {
      if (t.state == Thread::kDone || (t.state == Thread::kAtWarp) != warps || left-- <= 0) continue;
      const Warp& w = t.block->warps[t.warp];
      if (warps)
        report("synccheck", t.place, "deadlock: %s waits at %s for lanes %08x of mask %08x", name_of_thread(t).c_str(),
               t.waits_at, t.mask & w.live & ~w.waiting, t.mask);
      else
        report("synccheck", t.place, "deadlock: %s waits at %s", name_of_thread(t).c_str(), t.waits_at);
    }
}

// Every thread that can run keeps seeing what it saw: nothing will change it. Some patience is for loops that ask a
// few times and go on.
constexpr int kPatience = 64;

void run_to_end() {
  LaunchState& launch = *current_launch;
  int idle_turns = 0;
  while (launch.live && !launch.stopped) {
    launch.turn.swap(launch.next_turn);
    launch.next_turn.clear();
    if (launch.turn.empty() || idle_turns > kPatience) return report_deadlock();
    if (schedule.order == Order::Reverse) std::stable_sort(launch.turn.begin(), launch.turn.end(), std::greater<>());
    if (schedule.order == Order::Random) std::shuffle(launch.turn.begin(), launch.turn.end(), random_numbers);
    bool idle = true;
    for (Thread* t : launch.turn) {
      switch_to(*t);
      idle &= t->idle;
      if (launch.stopped) return;
    }
    idle_turns = idle ? idle_turns + 1 : 0;
  }
}

void thread_main() {
  fiber_began();
  current_launch->body(current_launch->arguments);
  InRuntime guard;
  --current_launch->live;
  thread_left_barriers(*running);
  wait_as(Thread::kDone);
  std::abort();
}

uint3 coordinates(unsigned i, const dim3& n) { return {i % n.x, i / n.x % n.y, i / n.x / n.y}; }
unsigned volume(const dim3& n) { return n.x * n.y * n.z; }

void place_block(const cudaLaunchConfig_t& config, unsigned number, Thread* threads, size_t first_stack) {
  const unsigned size = volume(config.blockDim);
  auto block = std::make_unique<Block>();
  block->number = number;
  block->index = coordinates(number, config.gridDim);
  block->size = block->live = size;
  block->threads = threads;
  block->dynamic_bytes = config.dynamicSmemBytes;
  block->warps.resize((size + 31) / 32);
  for (unsigned i = 0; i < size; ++i) {
    Thread& t = threads[i];
    t.index = coordinates(i, config.blockDim);
    t.rank = i, t.lane = i % 32, t.warp = i / 32;
    t.id = number << kBlockShift | i;
    t.block = block.get();
    start(t, first_stack + i, thread_main);
    block->warps[t.warp].live |= 1u << t.lane;
  }
  current_launch->blocks.push_back(std::move(block));
}

// These blocks at once, until all of their threads are done.
void run_blocks(const cudaLaunchConfig_t& config, unsigned first, unsigned count) {
  LaunchState& launch = *current_launch;
  const unsigned size = volume(config.blockDim);
  prepare_stacks(size_t(count) * size);
  launch.threads.clear();
  launch.threads.resize(size_t(count) * size);
  launch.turn.clear(), launch.next_turn.clear();
  launch.live = count * size, launch.at_grid = 0;
  for (unsigned i = 0; i < count; ++i)
    place_block(config, first + i, &launch.threads[size_t(i) * size], size_t(i) * size);
  ++now;
  std::vector<Thread*> all;
  for (Thread& t : launch.threads) all.push_back(&t);
  make_ready(all);
  run_to_end();
  for (const Thread& t : launch.threads)
    if (!stack_intact(t)) std::fprintf(stderr, "emulator: a thread needs a larger stack\n"), std::abort();
  for (const auto& block : launch.blocks)
    for (const auto* parts : {&block->statics, &block->parts})
      for (const SharedPart& part : *parts) device_free(part.p);
  launch.blocks.clear();
}

bool possible(const cudaLaunchConfig_t& config) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  return volume(block) >= 1 && volume(block) <= 1024 && block.z <= 64 && volume(grid) >= 1 && grid.y <= 65535 &&
         grid.z <= 65535;
}

std::map<const void*, size_t> shared_limits;

size_t shared_limit(const void* kernel) {
  const auto asked = shared_limits.find(kernel);
  return asked == shared_limits.end() ? 48 << 10 : asked->second;
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*), void* arguments,
                size_t bytes) {
  if (!possible(config)) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
  LaunchState launch{};
  launch.body = body, launch.arguments = arguments, launch.argument_bytes = bytes;
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeCooperative) launch.cooperative = config.attrs[i].val.cooperative;
  current_launch = &launch;
  blockDim = config.blockDim, gridDim = config.gridDim;
  random_numbers.seed(schedule.seed);
  forget_releases();
  launch.began = launch.ordered_before = ++now;  // launches in a stream are ordered
  const size_t reports = reports_so_far();

  const unsigned blocks = volume(config.gridDim);
  if (launch.cooperative) {
    run_blocks(config, 0, blocks);
  } else {  // nothing promises that two blocks run at once
    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    if (schedule.order == Order::Reverse) std::reverse(order.begin(), order.end());
    if (schedule.order == Order::Random) std::shuffle(order.begin(), order.end(), random_numbers);
    for (const unsigned block : order)
      if (!launch.stopped) run_blocks(config, block, 1);
  }
  current_launch = nullptr;
  return reports_so_far() == reports && !launch.stopped ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulator

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  constexpr int kMost = 227 << 10;  // of sm_90 and sm_100
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > kMost) return cudaErrorInvalidValue;
  emulator::shared_limits[kernel] = size_t(value);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  attributes->maxDynamicSharedSizeBytes = int(emulator::shared_limit(kernel));
  return cudaSuccess;
}
// By the threads and the shared memory of a multiprocessor of sm_90. What registers allow is not known here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t bytes) {
  const bool allowed = bytes <= emulator::shared_limit(kernel) && threads >= 1 && threads <= 1024;
  *blocks = allowed ? int(std::min<size_t>(2048 / size_t(threads), (228 << 10) / (bytes + 1024))) : 0;
  return cudaSuccess;
}
}
