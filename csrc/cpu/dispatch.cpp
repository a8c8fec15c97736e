// Picks the instruction set at run time.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels.h"

namespace fusedrnn {
namespace cpu {

const Isa* isa_baseline();
const Isa* isa_avx2();
const Isa* isa_avx512();

namespace {

struct Candidate {
  const Isa* isa;
  bool runs;
};

// Best first.
const Isa* choose(const char* wanted, std::string& error) {
#if FUSEDRNN_X86
  // All that build_tools/flags.py lets the compiler use.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const Candidate candidates[] = {
#if FUSEDRNN_X86
      {isa_avx512(), avx512},
      {isa_avx2(), avx2},
#endif
      {isa_baseline(), true},
  };
  std::string names;
  for (const Candidate& c : candidates) {
    const bool named = wanted && std::strcmp(wanted, c.isa->name) == 0;
    if (c.runs && (named || !wanted)) return c.isa;
    if (named) {
      error = std::string("FUSEDRNN_ISA=") + wanted + ": this machine does not have these instructions";
      return nullptr;
    }
    names += (names.empty() ? "" : ", ") + std::string(c.isa->name);
  }
  error = std::string("FUSEDRNN_ISA=") + wanted + ": expected one of " + names;
  return nullptr;
}

}  // namespace

const Isa* selected_isa(const char** error) {
  static std::string message;
  static const Isa* isa = [] {
    const char* wanted = std::getenv("FUSEDRNN_ISA");
    return choose(wanted && *wanted ? wanted : nullptr, message);
  }();
  if (error) *error = message.c_str();
  return isa;
}

}  // namespace cpu
}  // namespace fusedrnn
