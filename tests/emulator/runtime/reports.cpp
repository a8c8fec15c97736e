#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "internal.h"

namespace emulator {
namespace {

std::vector<Report> reports;
std::set<std::string> seen;  // one report of a kind for each place

struct Line {
  std::string file;
  int line;
};

// The lines of an address, from the innermost function that was inlined there outwards.
std::vector<Line> lines_of(const void* pc) {
  Dl_info module;
  std::vector<Line> lines;
  if (!dladdr(pc, &module) || !module.dli_fname) return {{"?", 0}};
  // The address is where the call before it returns to.
  const size_t offset = size_t(static_cast<const char*>(pc) - static_cast<char*>(module.dli_fbase)) - 1;
  char command[4200], text[4200];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", module.dli_fname, offset);
  if (FILE* answer = popen(command, "r")) {
    while (std::fgets(text, sizeof text, answer)) {
      char* colon = std::strrchr(text, ':');
      if (!colon) continue;
      *colon = 0;
      lines.push_back({text, std::atoi(colon + 1)});
    }
    pclose(answer);
  }
  if (lines.empty()) lines.push_back({"?", 0});
  return lines;
}

std::string base(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string triple(const uint3& v) {
  return std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z);
}

}  // namespace

std::string name_of_thread(const Thread& t) { return "block " + triple(t.block->index) + " thread " + triple(t.index); }
// One that may be gone.
std::string name_of_thread(ThreadId id) {
  const unsigned block = block_of(id), rank = id - (block << kBlockShift);
  for (const auto& b : current_launch->blocks)
    if (b->number == block) return name_of_thread(b->threads[rank]);
  return "thread number " + std::to_string(rank) + " of block number " + std::to_string(block);
}

void report(const char* kind, const Place& place, const char* format, ...) {
  char message[1000], key[1000];
  std::snprintf(key, sizeof key, "%s %p %s %d", kind, place.pc, place.file ? place.file : "", place.line);
  if (!seen.insert(key).second) return;
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  const std::vector<Line> lines = place.file ? std::vector<Line>{{place.file, place.line}} : lines_of(place.pc);
  std::string text = running ? name_of_thread(*running) + ": " + message : message;
  for (size_t i = 1; i < lines.size(); ++i)
    text += (i == 1 ? "; called at " : ", ") + base(lines[i].file) + ":" + std::to_string(lines[i].line);
  reports.push_back({kind, base(lines[0].file), lines[0].line, text});
}

size_t reports_so_far() { return reports.size(); }

std::vector<Report> take_reports() {
  std::vector<Report> all;
  all.swap(reports);
  seen.clear();
  return all;
}

}  // namespace emulator
