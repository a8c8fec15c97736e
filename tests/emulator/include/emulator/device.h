// The twins of csrc/cuda/device.cuh, which says what each of them does. Lane layouts follow the PTX manual's formulas
// for the row and column of fragment element i, so that they are written in another way than in the kernels.
#pragma once
#include <cuda_runtime.h>

#if !defined(FUSEDRNN_ARCH)
#error "include csrc/cuda/device.cuh, which includes this"
#endif

namespace emulator {

struct Position {
  int row, column;
};
// 16-bit operands, K = 8 or 16: element i of the fragments of a and b, and of d.
inline Position a16(int lane, int i) {
  return {lane / 4 + (i / 2 % 2 ? 8 : 0), lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0)};
}
inline Position b16(int lane, int i) { return {lane % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0), lane / 4}; }
inline Position a32(int lane, int i) { return {lane / 4 + (i % 2 ? 8 : 0), lane % 4 + (i >= 2 ? 4 : 0)}; }
inline Position b32(int lane, int i) { return {lane % 4 + (i ? 4 : 0), lane / 4}; }
inline Position d32(int lane, int i) { return {lane / 4 + (i >= 2 ? 8 : 0), lane % 4 * 2 + i % 2}; }

inline float element(const unsigned* registers, int i, const __half*) {
  return __half2float(__half(__half_raw{static_cast<unsigned short>(registers[i / 2] >> (16 * (i % 2)))}));
}
inline float element(const unsigned* registers, int i, const __nv_bfloat16*) {
  return __uint_as_float(registers[i / 2] >> (16 * (i % 2)) << 16);
}
struct Tf32;
// The instruction does not look at the bits that TF32 lacks.
inline float element(const unsigned* registers, int i, const Tf32*) { return __uint_as_float(registers[i] & ~0x1fffu); }

struct Operands {
  const unsigned *a, *b;
};

// Products of these types are exact in double; the order of the sum is not documented, and this one is as good as any.
template <class T, int K>
void multiply(const Lane (&lanes)[32], unsigned) {
  constexpr bool wide = std::is_same_v<T, Tf32>;
  double a[16][K], b[K][8], d[16][8] = {};
  for (int l = 0; l < 32; ++l) {
    const auto& own = *static_cast<const Operands*>(lanes[l].in);
    for (int i = 0; i < 16 * K / 32; ++i) {
      const Position at = wide ? a32(l, i) : a16(l, i);
      a[at.row][at.column] = double(element(own.a, i, static_cast<const T*>(nullptr)));
    }
    for (int i = 0; i < 8 * K / 32; ++i) {
      const Position at = wide ? b32(l, i) : b16(l, i);
      b[at.row][at.column] = double(element(own.b, i, static_cast<const T*>(nullptr)));
    }
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const Position at = d32(l, i);
      float& out = static_cast<float*>(lanes[l].out)[i];
      out = float(double(out) + d[at.row][at.column]);
    }
}

template <class T, int K>
EMULATOR_UNSEEN void mma(float* d, const unsigned* a, const unsigned* b, const char* name, Place here) {
  const Operands operands{a, b};
  collective({name, multiply<T, K>, false, false}, ~0u, {&operands, d, 0}, here);
}

// Lane 8 i + j brings the address of row j of matrix i.
template <int N, bool Transposed>
void load_matrices(const Lane (&lanes)[32], unsigned) {
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < N; ++i)
      for (int half = 0; half < 2; ++half) {
        const int along = l % 4 * 2 + half, row = Transposed ? along : l / 4, column = Transposed ? l / 4 : along;
        std::memcpy(static_cast<char*>(lanes[l].out) + 4 * i + 2 * half,
                    static_cast<const char*>(lanes[8 * i + row].in) + 2 * column, 2);
      }
}
template <int N, bool Transposed>
EMULATOR_UNSEEN void ldmatrix(unsigned* r, const void* row, const char* name, Place here) {
  if (int(lane()) < 8 * N) touch(row, 16, Access::Read, here);
  collective({name, load_matrices<N, Transposed>, false, false}, ~0u, {row, r, 0}, here);
}

}  // namespace emulator

namespace fusedrnn {

template <class T>
void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], EMULATOR_HERE) {
  static_assert(std::is_same_v<T, __half>, "the 8-deep product is one of halves");
  emulator::mma<T, 8>(d, a, b, "mma_m16n8k8", here);
}
#if FUSEDRNN_ARCH >= 800
template <class T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_HERE) {
  emulator::mma<T, 16>(d, a, b, "mma_m16n8k16", here);
}
inline unsigned to_tf32(float v) {
  const unsigned bits = __float_as_uint(v);
  return std::isfinite(v) ? (bits + 0x1000u) & ~0x1fffu : bits;
}
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_HERE) {
  emulator::mma<emulator::Tf32, 8>(d, a, b, "mma_m16n8k8_tf32", here);
}
#endif

template <int N>
void ldmatrix(unsigned (&r)[N], const void* row, EMULATOR_HERE) {
  static_assert(N == 1 || N == 2 || N == 4, "what the instruction loads");
  emulator::ldmatrix<N, false>(r, row, "ldmatrix", here);
}
template <int N>
void ldmatrix_transposed(unsigned (&r)[N], const void* row, EMULATOR_HERE) {
  static_assert(N == 1 || N == 2 || N == 4, "what the instruction loads");
  emulator::ldmatrix<N, true>(r, row, "ldmatrix_transposed", here);
}

template <int Bytes>
void cp_async(void* shared, const void* global, EMULATOR_HERE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "what the instruction copies");
  emulator::async_copy(shared, global, Bytes, here);
#if FUSEDRNN_ARCH < 800
  emulator::async_commit();
  emulator::async_wait(0);
#endif
}
inline void cp_async_commit() { emulator::async_commit(); }
template <int Pending>
void cp_async_wait() {
  emulator::async_wait(Pending);
}

// A spin loop sees what it waits for only if others run, so loads let them.
EMULATOR_UNSEEN inline unsigned load_relaxed(const unsigned* p, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicRead, here);
  emulator::poll(p, *p, here);
  return *p;
}
EMULATOR_UNSEEN inline unsigned load_acquire(const unsigned* p, EMULATOR_HERE) {
  const unsigned v = load_relaxed(p, here);
  emulator::acquire(p);
  return v;
}
EMULATOR_UNSEEN inline void store_relaxed(unsigned* p, unsigned v, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicWrite, here);
  *p = v;
}
EMULATOR_UNSEEN inline void store_release(unsigned* p, unsigned v, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicWrite, here);
  emulator::release(p);
  *p = v;
}
inline void add_relaxed(unsigned* p, unsigned v, EMULATOR_HERE) { atomicAdd(p, v, here); }
EMULATOR_UNSEEN inline void add_release(unsigned* p, unsigned v, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicModify, here);
  emulator::release(p);
  *p += v;
}

EMULATOR_UNSEEN inline uint4 load_relaxed(const uint4* p, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicRead, here);
  return *p;
}
EMULATOR_UNSEEN inline void store_relaxed(unsigned short* p, unsigned short v, EMULATOR_HERE) {
  emulator::touch(p, sizeof *p, emulator::Access::AtomicWrite, here);
  *p = v;
}

inline void spin_on(EMULATOR_HERE) { emulator::poll(nullptr, 0, here); }
inline void nanosleep(unsigned ns, EMULATOR_HERE) { __nanosleep(ns, here); }
template <class Done>
void spin_until(Done done, EMULATOR_HERE) {
  while (!done()) nanosleep(20, here);
}
inline void fence_block() {}
inline void fence_gpu() {}
inline void fence_system() {}

}  // namespace fusedrnn
