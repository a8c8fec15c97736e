// The emulator as its users see it: how threads are scheduled, device memory, and what was found.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace emulator {

enum class Order { Forward, Reverse, Random };

struct Schedule {
  Order order = Order::Forward;  // of blocks, and of the threads that may run between two barriers
  unsigned seed = 1;             // of Random and of preempt
  unsigned preempt = 0;          // checked build: another thread runs at one in so many accesses
};
extern Schedule schedule;

struct Report {
  std::string kind;  // memcheck, initcheck, racecheck, synccheck, asynccheck, trap
  std::string file;
  int line;
  std::string message;
};
// What was found since the last call.
std::vector<Report> take_reports();

void* allocate(size_t bytes);
void release_allocation(void* p);
void upload(void* to, const void* from, size_t bytes);

}  // namespace emulator
