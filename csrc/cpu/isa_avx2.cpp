#include "instance.h"
FUSEDRNN_DEFINE_ISA(isa_avx2, "avx2")
