// The checked build: kernels are compiled with -fsanitize=thread, which puts a call before every access to memory, and
// linked with the functions at the end of this file in place of the sanitizer's own.
#include "internal.h"

#if defined(EMULATOR_CHECKED)

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;  // of this shared object

namespace emulator {
namespace {

// What is known of two neighbouring bytes, the smallest values that kernels write. Times are of the last accesses.
struct Cell {
  enum State : uint8_t { kNone, kAllocated, kWritten, kInFlight };

  Time written;
  ThreadId writer;
  // Of the last reader; of the last other one of its block; of the last one of another block.
  Time read[3];
  ThreadId reader[3];
  State state;
  bool released;  // something can be acquired here
};
// In the number of a thread that read or wrote atomically.
constexpr ThreadId kAtomic = ThreadId(1) << 31;

Cell* cells;

struct Cells {
  Cell *first, *last;
  Cell* begin() const { return first; }
  Cell* end() const { return last; }
};
Cells cells_of(const void* p, size_t bytes) {
  const size_t offset = size_t(static_cast<const char*>(p) - arena);
  return {cells + offset / 2, cells + (offset + bytes + 1) / 2};
}
const char* address_of(const Cell& cell) { return arena + (&cell - cells) * 2; }

// A thread that only reads for so long may wait for what others do: they get a turn.
constexpr uint32_t kReadsOfATurn = 1 << 19;

bool racing(ThreadId who, Time when, bool atomic) {
  if (!when || (atomic && who & kAtomic)) return false;
  return !happened_before(who & ~kAtomic, when);
}

void note_read(Cell& cell, bool atomic) {
  const ThreadId own = running->id | (atomic ? kAtomic : 0);
  if (cell.read[0] && cell.reader[0] != own) {
    const int slot = block_of(cell.reader[0] & ~kAtomic) == block_of(running->id) ? 1 : 2;
    cell.read[slot] = cell.read[0], cell.reader[slot] = cell.reader[0];
  }
  cell.read[0] = now, cell.reader[0] = own;
}

void report_race(const char* what, const Cell& cell, ThreadId other, const Place& place) {
  InRuntime guard;
  report("racecheck", place, "%s by %s, without an order between them: %s", what,
         name_of_thread(other & ~kAtomic).c_str(), describe(address_of(cell)).c_str());
}

void check_races(Cell& cell, Access access, const Place& place) {
  const bool atomic = access >= Access::AtomicRead, reads = access == Access::Read || access == Access::AtomicRead;
  if (racing(cell.writer, cell.written, atomic))
    report_race(reads ? "reads what was written" : "writes what was written", cell, cell.writer, place);
  if (reads) return note_read(cell, atomic);
  for (int i = 0; i < 3; ++i)
    if (racing(cell.reader[i], cell.read[i], atomic)) {
      report_race("writes what was read", cell, cell.reader[i], place);
      break;
    }
  cell.written = now, cell.writer = running->id | (atomic ? kAtomic : 0);
  cell.state = Cell::kWritten;
  if (access != Access::AtomicModify && cell.released) forget_release(address_of(cell)), cell.released = false;
}

// Nothing is known of other memory than the device's; but kernels have no business in most of it.
void check_host(const char* p, const Place& place) {
  if (on_stack(*running, p)) return;
  if (p >= &__ehdr_start && p < &_end) return;
  const char* arguments = static_cast<const char*>(current_launch->arguments);
  if (p >= arguments && p < arguments + current_launch->argument_bytes) return;
  InRuntime guard;
  report("memcheck", place, "access to memory of the host, or to none");
  stop_launch();
}

// True when what the access leads to may be looked at.
bool check_state(Cell& cell, Access access, const Place& place) {
  if (cell.state == Cell::kWritten) return true;
  InRuntime guard;
  const std::string where = describe(address_of(cell));
  switch (cell.state) {
    case Cell::kNone: report("memcheck", place, "out of bounds: %s", where.c_str()), stop_launch(); return false;
    case Cell::kInFlight:
      report("asynccheck", place, "access to what a cp.async is writing that nobody waited for: %s", where.c_str());
      return false;
    default:
      if (access == Access::Write || access == Access::AtomicWrite) return true;
      report("initcheck", place, "reads what was never written: %s", where.c_str());
      cell.state = Cell::kWritten;
      return true;
  }
}

}  // namespace

void check(const void* p, size_t bytes, Access access, const Place& place, bool constant) {
  if (!running || in_runtime) return;
  Thread& t = *running;
  if (size_t(static_cast<const char*>(p) - arena) >= kArenaBytes) return check_host(static_cast<const char*>(p), place);
  if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && reinterpret_cast<size_t>(p) & (bytes - 1)) {
    InRuntime guard;
    report("memcheck", place, "an access of %zu bytes that is not aligned to them", bytes);
    stop_launch();
  }
  for (Cell& cell : cells_of(p, bytes)) {
    if (!check_state(cell, access, place)) continue;
    if (constant && cell.written >= current_launch->began) {
      InRuntime guard;
      report("racecheck", place, "reads through the cache of constants what this launch writes: %s",
             describe(address_of(cell)).c_str());
    }
    check_races(cell, access, place);
  }
  t.reads = access == Access::Read || access == Access::AtomicRead ? t.reads + 1 : 0;
  InRuntime guard;
  if (t.reads && t.reads % kReadsOfATurn == 0)
    poll(nullptr, 0, place);
  else if (schedule.preempt && access != Access::AtomicRead && random_numbers() % schedule.preempt == 0)
    preempt(t.reads > kReadsOfATurn);
}

void touch(const void* p, size_t bytes, Access access, Place here) { check(p, bytes, access, here); }
void touch_constant(const void* p, size_t bytes, Place here) { check(p, bytes, Access::Read, here, true); }

// ---------------------------------------------------------------------------------------------- cells

void prepare_cells() {
  void* p = mmap(nullptr, kArenaBytes / 2 * sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::perror("emulator: no address space for the checker"), std::abort();
  cells = static_cast<Cell*>(p);
}
void mark_allocated(const char* p, size_t bytes) {
  for (Cell& cell : cells_of(p, bytes)) cell = Cell{}, cell.state = Cell::kAllocated;
}
void mark_freed(const char* p, size_t bytes) {
  for (Cell& cell : cells_of(p, bytes)) cell = Cell{};
}
void mark_initialised(const char* p, size_t bytes) {
  for (Cell& cell : cells_of(p, bytes)) cell = Cell{}, cell.state = Cell::kWritten;
}
void mark_released(const void* p) { cells_of(p, 1).first->released = true; }
void mark_in_flight(const char* p, size_t bytes) {
  for (Cell& cell : cells_of(p, bytes)) cell.state = Cell::kInFlight;
}
void mark_landed(const char* p, size_t bytes) {
  for (Cell& cell : cells_of(p, bytes)) cell.state = Cell::kWritten, cell.written = now, cell.writer = running->id;
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------- called by kernels

using emulator::Access;
#define PC \
  emulator::Place { nullptr, 0, __builtin_return_address(0) }
#define ACCESS(n)                                                                     \
  void __tsan_read##n(void* p) { emulator::check(p, n, Access::Read, PC); }           \
  void __tsan_write##n(void* p) { emulator::check(p, n, Access::Write, PC); }         \
  void __tsan_unaligned_read##n(void* p) { emulator::check(p, n, Access::Read, PC); } \
  void __tsan_unaligned_write##n(void* p) { emulator::check(p, n, Access::Write, PC); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { emulator::check(p, bytes, Access::Read, PC); }
void __tsan_write_range(void* p, size_t bytes) { emulator::check(p, bytes, Access::Write, PC); }
void __tsan_init() {}
}

#else

namespace emulator {
void touch(const void*, size_t, Access, Place) {}
void touch_constant(const void*, size_t, Place) {}
}  // namespace emulator

#endif
