#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves what the ABI lets a callee keep, and returns on the other stack.
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.local emulator_switch
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

// No power of two: the tops of all stacks would share a few sets of the cache.
constexpr size_t kStackBytes = (64 << 10) + 4096 + 320;
constexpr size_t kEndOfStack = 0x5ca1ab1e0ddba11;

char* stacks;
size_t stack_count;
void* scheduler_stack_pointer;
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_sanitizer_stack;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
#endif

}  // namespace

// Pages are filled when they are first touched.
void prepare_stacks(size_t threads) {
  if (threads <= stack_count) return;
  if (stacks) munmap(stacks, stack_count * kStackBytes);
  stack_count = threads;
  void* p = mmap(nullptr, stack_count * kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::perror("emulator: no memory for stacks"), std::abort();
  stacks = static_cast<char*>(p);
}

void start(Thread& t, size_t stack_number, void (*main)()) {
  t.stack = stacks + stack_number * kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(t.stack, kStackBytes);
#endif
  *reinterpret_cast<size_t*>(t.stack) = kEndOfStack;
  void** top = reinterpret_cast<void**>(t.stack + kStackBytes);
  *--top = nullptr;  // where `main` would return to: keeps the alignment that the ABI wants
  *--top = reinterpret_cast<void*>(main);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  t.stack_pointer = top;
}

// The first thing that a fiber does.
void fiber_began() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

bool stack_intact(const Thread& t) { return *reinterpret_cast<const size_t*>(t.stack) == kEndOfStack; }

bool on_stack(const Thread& t, const void* p) { return p >= t.stack && p < t.stack + kStackBytes; }

void switch_to(Thread& t) {
  running = &t;
  threadIdx = t.index;
  blockIdx = t.block->index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_sanitizer_stack, t.stack, kStackBytes);
#endif
  emulator_switch(&scheduler_stack_pointer, t.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_sanitizer_stack, nullptr, nullptr);
#endif
  running = nullptr;
}

void switch_to_scheduler() {
  Thread& t = *running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(t.state == Thread::kDone ? nullptr : &t.sanitizer_stack, scheduler_stack,
                                 scheduler_stack_bytes);
#endif
  emulator_switch(&t.stack_pointer, scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(t.sanitizer_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

}  // namespace emulator
