// What every machine of the target can run: SSE2 on x86-64, NEON on 64-bit Arm.
#include "instance.h"
FUSEDRNN_DEFINE_ISA(isa_baseline, "baseline")
