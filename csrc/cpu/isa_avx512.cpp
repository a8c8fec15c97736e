#include "instance.h"
FUSEDRNN_DEFINE_ISA(isa_avx512, "avx512")
