// c = a b^T on tensor cores: a is [M][K], b is [N][K], of halves or bfloat16; c is [M][N] of float. A block makes 32 x
// 8 of c, a warp 16 of its rows, 16 of K a step; the next step's tiles are copied while this one's are multiplied.
#include <type_traits>

#include "csrc/cuda/device.cuh"
#include "kernels.h"

using namespace fusedrnn;

namespace {

constexpr int kRows = 32, kColumns = 8, kDepth = 16;
constexpr int kThreads = kRows / 16 * 32;
constexpr int kPitch = kDepth + 8;  // keeps rows 16-byte aligned, and eight of them in different banks

template <class T>
struct Tiles {
  T *a, *b;

  // Of both steps: [2][rows][kPitch].
  static FUSEDRNN_INLINE Tiles carve(SharedCarver& carver) {
    T* a = carver.take<T>("a", 2 * kRows * kPitch);
    return {a, carver.take<T>("b", 2 * kColumns * kPitch)};
  }
};

template <class T>
__device__ void copy_rows(T* tile, const T* from, int rows, int K) {
  constexpr int kChunk = 16 / sizeof(T);
  for (int i = int(threadIdx.x); i < rows * kDepth / kChunk; i += kThreads) {
    const int row = i / (kDepth / kChunk), column = i % (kDepth / kChunk) * kChunk;
    cp_async<16>(tile + row * kPitch + column, from + row * K + column);
  }
}

template <class T>
__device__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if FUSEDRNN_ARCH >= 800
  mma_m16n8k16<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, __half>) {
    const unsigned a_parts[2][2] = {{a[0], a[1]}, {a[2], a[3]}}, b_parts[2][1] = {{b[0]}, {b[1]}};
    for (int part = 0; part < 2; ++part) mma_m16n8k8<T>(d, a_parts[part], b_parts[part]);
  } else {
    __trap();  // this architecture has no product of bfloat16, and its host code asks for none
  }
#endif
}

// With the registers of a in the wrong order, for a test that must see it.
template <class T, bool WrongLayout>
__global__ void __launch_bounds__(kThreads) matmul(const T* a, const T* b, float* c, int K, int N) {
  DYNAMIC_SHARED(carver);
  const Tiles<T> tiles = Tiles<T>::carve(carver);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int row0 = int(blockIdx.y) * kRows, column0 = int(blockIdx.x) * kColumns, steps = K / kDepth;
  const auto fetch = [&](int step) {
    copy_rows(tiles.a + step % 2 * kRows * kPitch, a + row0 * K + step * kDepth, kRows, K);
    copy_rows(tiles.b + step % 2 * kColumns * kPitch, b + column0 * K + step * kDepth, kColumns, K);
  };
  float d[4] = {};
  fetch(0);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    unsigned a_part[4], b_part[2];
    // Of a, the four 8 x 8 quarters in the order of its registers: rows first. Lanes 16 to 31 bring unused addresses of
    // b.
    ldmatrix(a_part, tiles.a + step % 2 * kRows * kPitch + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8);
    ldmatrix(b_part, tiles.b + step % 2 * kColumns * kPitch + lane % 8 * kPitch + lane / 8 % 2 * 8);
    if constexpr (WrongLayout) {
      const unsigned kept = a_part[1];
      a_part[1] = a_part[2], a_part[2] = kept;
    }
    multiply_add<T>(d, a_part, b_part);
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) c[(row0 + warp * 16 + lane / 4 + i / 2 * 8) * N + column0 + lane % 4 * 2 + i % 2] = d[i];
}

template <class T, bool WrongLayout>
cudaError_t run(const T* a, const T* b, float* c, int M, int N, int K) {
  SharedCarver measure;
  Tiles<T>::carve(measure);
  const dim3 grid{unsigned(N / kColumns), unsigned(M / kRows)};
  return launch({grid, dim3(kThreads), measure.bytes()}, matmul<T, WrongLayout>, a, b, c, K, N);
}

}  // namespace

cudaError_t matmul_half(const __half* a, const __half* b, float* c, int M, int N, int K, bool wrong_layout) {
  return wrong_layout ? run<__half, true>(a, b, c, M, N, K) : run<__half, false>(a, b, c, M, N, K);
}
cudaError_t matmul_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int M, int N, int K) {
  return run<__nv_bfloat16, false>(a, b, c, M, N, K);
}
