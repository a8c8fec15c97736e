// Functions of headers that several compilers and instruction sets share are always inlined: then no copy of them
// exists for the linker to merge, which might hold instructions that the machine lacks.
#pragma once
#if defined(__CUDACC__)
#define FUSEDRNN_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDRNN_INLINE inline __attribute__((always_inline))
#endif
