#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace emulator {

char* arena;

namespace {

// As cudaMalloc aligns, and as much between two arrays.
constexpr size_t kAlignment = 256;
size_t with_gap(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment; }

std::map<const char*, size_t> allocations;
std::multimap<size_t, char*> free_blocks;  // by size with gap

#if defined(EMULATOR_CHECKED)
size_t arena_used;

char* from_arena(size_t bytes) {
  if (!arena) {
    void* p = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    arena = static_cast<char*>(p);
    arena_used = kAlignment;
    prepare_cells();
  }
  const size_t size = with_gap(bytes);
  if (const auto block = free_blocks.find(size); block != free_blocks.end()) {
    char* p = block->second;
    free_blocks.erase(block);
    return p;
  }
  if (arena_used + size > kArenaBytes) return nullptr;
  char* p = arena + arena_used;
  arena_used += size;
  return p;
}
#endif

}  // namespace

// What was never written is NaN in every type, for builds that do not see it read.
char* device_allocate(size_t bytes) {
  if (bytes == 0) bytes = 1;
#if defined(EMULATOR_CHECKED)
  char* p = from_arena(bytes);
  if (!p) return nullptr;
  mark_allocated(p, bytes);
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes)) return nullptr;
  char* p = static_cast<char*>(memory);
#endif
  std::memset(p, 0xff, bytes);
  allocations[p] = bytes;
  return p;
}

void device_free(char* p) {
  const auto found = allocations.find(p);
  if (found == allocations.end()) std::fprintf(stderr, "emulator: freed what was not allocated\n"), std::abort();
#if defined(EMULATOR_CHECKED)
  mark_freed(p, found->second);
  free_blocks.emplace(with_gap(found->second), p);
#else
  std::free(p);
#endif
  allocations.erase(found);
}

std::string describe(const char* p) {
  auto after = allocations.upper_bound(p);
  if (after == allocations.begin()) return "outside of all arrays";
  const auto& [start, bytes] = *--after;
  if (p >= start + with_gap(bytes)) return "outside of all arrays";
  std::string array = "a global array";
  for (const auto& block : current_launch->blocks)
    for (const auto* parts : {&block->statics, &block->parts})
      for (const SharedPart& part : *parts)
        if (part.p == start) array = "the shared array " + part.name + " of block " + std::to_string(block->number);
  return "byte " + std::to_string(p - start) + " of " + array + ", which has " + std::to_string(bytes) + " bytes";
}

void* allocate(size_t bytes) { return device_allocate(bytes); }
void release_allocation(void* p) { device_free(static_cast<char*>(p)); }
void upload(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  if (kChecked) mark_initialised(static_cast<char*>(to), bytes);
}

// ---------------------------------------------------------------------------------------------- shared memory

void* static_shared(const void* key, size_t bytes, const char* name) {
  InRuntime guard;
  auto& arrays = running->block->statics;
  for (const SharedPart& array : arrays)
    if (array.key == key) return array.p;
  arrays.push_back({key, device_allocate(bytes), bytes, name});
  return arrays.back().p;
}

unsigned char* dynamic_shared() {
  static unsigned char exists;
  return &exists;
}

void* dynamic_shared_part(size_t offset, size_t bytes, const char* name, Place here) {
  InRuntime guard;
  Block& block = *running->block;
  if (offset + bytes > block.dynamic_bytes) {
    report("memcheck", here, "%s ends at byte %zu of dynamic shared memory, of which the launch asked for %zu", name,
           offset + bytes, block.dynamic_bytes);
    stop_launch();
  }
  const void* key = reinterpret_cast<const void*>(offset);
  for (const SharedPart& part : block.parts) {
    const size_t at = reinterpret_cast<size_t>(part.key);
    if (part.key == key && part.bytes == bytes) return part.p;
    if (offset < at + part.bytes && at < offset + bytes) {
      report("synccheck", here, "threads of one block cut shared memory differently: %s overlaps %s", name,
             part.name.c_str());
      stop_launch();
    }
  }
  block.parts.push_back({key, device_allocate(bytes), bytes, name});
  return block.parts.back().p;
}

// ---------------------------------------------------------------------------------------------- asynchronous copies
//
// They read and write at some time before they are waited for. Here that is the last moment, and the checker takes it
// that the destination belongs to the copy from the first.

void async_copy(void* to, const void* from, size_t bytes, Place here) {
  touch(from, bytes, Access::Read, here);
  touch(to, bytes, Access::Write, here);
  InRuntime guard;
  if (kChecked) mark_in_flight(static_cast<char*>(to), bytes);
  running->open_group.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, here});
}

void async_commit() {
  InRuntime guard;
  running->groups.push_back(std::move(running->open_group));
  running->open_group.clear();
}

void async_wait(size_t pending_groups) {
  Thread& t = *running;
  while (t.groups.size() > pending_groups) {
    for (const AsyncCopy& copy : t.groups.front()) {
      touch(copy.from, copy.bytes, Access::Read, copy.place);
      std::memcpy(copy.to, copy.from, copy.bytes);
      if (kChecked) mark_landed(copy.to, copy.bytes);
    }
    InRuntime guard;
    t.groups.pop_front();
  }
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------- CUDA's functions

extern "C" {

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  if (emulator::kChecked) emulator::mark_initialised(static_cast<char*>(p), bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  emulator::upload(to, from, bytes);
  return cudaSuccess;
}
// Launches say themselves what went wrong.
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "launch failed"; }
}
