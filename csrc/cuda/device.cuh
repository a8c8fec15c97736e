// Instructions that CUDA C++ has no name for: the only file with inline PTX. Each wrapper has a twin of the same name
// in tests/emulator/include/emulator/device.h, which does on the CPU what the PTX manual says that the instruction
// does.
//
// bfloat16 and TF32 products and the 16-deep product of halves start with sm_80 and are not defined below it.
#pragma once
#include "compat.cuh"

#if !defined(__CUDACC__)
#include <emulator/device.h>
#else

namespace fusedrnn {

// ---------------------------------------------------------------------------------------------- matrix products
//
// d += a b by one warp: a is 16 x K, b is K x 8, d is 16 x 8. With g = lane / 4 and q = lane % 4, a lane holds
//
//   d     d[0], d[1] at row g, columns 2q, 2q + 1;  d[2], d[3] at row g + 8
//   a     16-bit types: each register two neighbours of a row, at columns 2q, 2q + 1: a[0] of row g, a[1] of row g + 8,
//         and, of K = 16, a[2] and a[3] the same at columns 2q + 8, 2q + 9
//         tf32: a[0] at row g, column q; a[1] at row g + 8; a[2], a[3] the same at column q + 4
//   b     16-bit types: each register two neighbours of a column, b[0] of rows 2q, 2q + 1, b[1] of rows 2q + 8, 2q + 9,
//         at column g
//         tf32: b[0] at row q, b[1] at row q + 4, column g

template <class T>
FUSEDRNN_DEVICE void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <class T>
FUSEDRNN_DEVICE void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]);

template <>
FUSEDRNN_DEVICE void mma_m16n8k8<__half>(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#if FUSEDRNN_ARCH >= 800
template <>
FUSEDRNN_DEVICE void mma_m16n8k16<__half>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
FUSEDRNN_DEVICE void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounded to the ten explicit bits of TF32, ties away from zero, as the product wants its operands.
FUSEDRNN_DEVICE unsigned to_tf32(float v) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}
FUSEDRNN_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// ---------------------------------------------------------------------------------------------- shared memory
//
// ldmatrix reads N matrices of 8 x 8 16-bit values. Lane 8 i + j gives the address of row j of matrix i, 16-byte
// aligned; lanes beyond 8 N are not asked. Each lane gets from matrix i, in r[i], the two neighbours at row lane / 4,
// columns 2 (lane % 4) and the next. Transposed, it gets those at column lane / 4, rows 2 (lane % 4) and the next.

FUSEDRNN_DEVICE unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

#define FUSEDRNN_LDMATRIX(name, modifier)                                                       \
  FUSEDRNN_DEVICE void name(unsigned (&r)[1], const void* row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 {%0}, [%1];"             \
                 : "=r"(r[0])                                                                   \
                 : "r"(shared_address(row))                                                     \
                 : "memory");                                                                   \
  }                                                                                             \
  FUSEDRNN_DEVICE void name(unsigned (&r)[2], const void* row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(r[0]), "=r"(r[1])                                                       \
                 : "r"(shared_address(row))                                                     \
                 : "memory");                                                                   \
  }                                                                                             \
  FUSEDRNN_DEVICE void name(unsigned (&r)[4], const void* row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                               \
                 : "r"(shared_address(row))                                                     \
                 : "memory");                                                                   \
  }
FUSEDRNN_LDMATRIX(ldmatrix, "")
FUSEDRNN_LDMATRIX(ldmatrix_transposed, ".trans")
#undef FUSEDRNN_LDMATRIX

// A copy of 4, 8 or 16 bytes from global to shared memory, both aligned to that size. What it wrote may be read by this
// thread after cp_async_wait, and by others after a barrier that follows. Below sm_80 it is done when it returns.
template <int Bytes>
FUSEDRNN_DEVICE void cp_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "what the instruction copies");
#if FUSEDRNN_ARCH >= 800
  if constexpr (Bytes == 16)  // past L1, which holds nothing of use to this copy
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes)
                 : "memory");
#else
  if constexpr (Bytes == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  if constexpr (Bytes == 8) *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
  if constexpr (Bytes == 4) *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}
// Closes a group: the copies of this thread since the last one.
FUSEDRNN_DEVICE void cp_async_commit() {
#if FUSEDRNN_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for all groups of this thread but the Pending youngest.
template <int Pending>
FUSEDRNN_DEVICE void cp_async_wait() {
#if FUSEDRNN_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// ---------------------------------------------------------------------------------------------- between blocks
//
// All that a thread did before a release, and all that was ordered before it, is seen by a thread that acquires what it
// wrote, or what read-modify-writes made of that.

FUSEDRNN_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
FUSEDRNN_DEVICE unsigned load_relaxed(const unsigned* p) {
  unsigned v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
FUSEDRNN_DEVICE void store_release(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
FUSEDRNN_DEVICE void store_relaxed(unsigned* p, unsigned v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
FUSEDRNN_DEVICE void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
FUSEDRNN_DEVICE void add_relaxed(unsigned* p, unsigned v) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// 16 bytes, and a value of two or four, relaxed as above: whole as far as the value goes, not as the 16 bytes.
FUSEDRNN_DEVICE uint4 load_relaxed(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
FUSEDRNN_DEVICE void store_relaxed(unsigned short* p, unsigned short v) {
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(p), "h"(v) : "memory");
}

FUSEDRNN_DEVICE void nanosleep(unsigned ns) { __nanosleep(ns); }

// Asks until the answer is yes. What `done` looks at must be read by load_acquire or load_relaxed.
template <class Done>
FUSEDRNN_DEVICE void spin_until(Done done) {
  while (!done()) nanosleep(20);
}

// In a loop of loads that waits for what others write, where every nanosecond counts: nothing, but in the emulator the
// turn of others.
FUSEDRNN_DEVICE void spin_on() {}

// Stand-alone fences, which order what is relaxed around them. The emulator's race checker takes none of them for order
// between threads.
FUSEDRNN_DEVICE void fence_block() { __threadfence_block(); }
FUSEDRNN_DEVICE void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
FUSEDRNN_DEVICE void fence_system() { __threadfence_system(); }

}  // namespace fusedrnn
#endif
