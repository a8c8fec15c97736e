// The wrappers of device.cuh one by one: registers come and go as they are, one row of the arrays a lane.
#include "csrc/cuda/device.cuh"
#include "kernels.h"

using namespace fusedrnn;

namespace {

template <int N>
__device__ void take(unsigned (&registers)[N], const unsigned* all) {
  for (int i = 0; i < N; ++i) registers[i] = all[threadIdx.x * N + i];
}

enum Product { kHalf16, kBFloat16, kHalf8, kTensorFloat };

template <Product kind>
__global__ void multiply(const unsigned* a, const unsigned* b, float* d) {
  [[maybe_unused]] unsigned own_a[kind == kHalf8 ? 2 : 4], own_b[kind == kHalf8 ? 1 : 2];
  float own_d[4];
  take(own_a, a);
  take(own_b, b);
  for (int i = 0; i < 4; ++i) own_d[i] = d[threadIdx.x * 4 + i];
  if constexpr (kind == kHalf8) mma_m16n8k8<__half>(own_d, own_a, own_b);
#if FUSEDRNN_ARCH >= 800
  if constexpr (kind == kHalf16) mma_m16n8k16<__half>(own_d, own_a, own_b);
  if constexpr (kind == kBFloat16) mma_m16n8k16<__nv_bfloat16>(own_d, own_a, own_b);
  if constexpr (kind == kTensorFloat) mma_m16n8k8_tf32(own_d, own_a, own_b);
#endif
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = own_d[i];
}

// N matrices of 8 x 8, each lane with the address of a row.
template <int N, bool Transposed>
__global__ void load(const uint4* rows, unsigned* registers) {
  SHARED_ARRAY(uint4, tile, [8 * N]);
  const int lane = int(threadIdx.x);
  if (lane < 8 * N) tile[lane] = rows[lane];
  __syncwarp();
  unsigned r[N];
  if constexpr (Transposed)
    ldmatrix_transposed(r, &tile[lane % (8 * N)]);
  else
    ldmatrix(r, &tile[lane % (8 * N)]);
  for (int i = 0; i < N; ++i) registers[i * 32 + lane] = r[i];
}

template <int Bytes>
__global__ void copy(const unsigned char* from, unsigned char* to) {
  SHARED_ARRAY(unsigned char, tile, [32 * 16]);
  cp_async<Bytes>(tile + threadIdx.x * Bytes, from + threadIdx.x * Bytes);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < Bytes; ++i) to[threadIdx.x * Bytes + i] = tile[threadIdx.x * Bytes + i];
}

__global__ void round_to_tf32([[maybe_unused]] const float* values, [[maybe_unused]] unsigned* bits) {
#if FUSEDRNN_ARCH >= 800
  bits[threadIdx.x] = to_tf32(values[threadIdx.x]);
#endif
}

const Launch kWarp{dim3(1), dim3(32)};

}  // namespace

cudaError_t multiply_registers(int kind, const unsigned* a, const unsigned* b, float* d) {
  void (*const kernels[])(const unsigned*, const unsigned*, float*) = {multiply<kHalf16>, multiply<kBFloat16>,
                                                                       multiply<kHalf8>, multiply<kTensorFloat>};
  return launch(kWarp, kernels[kind], a, b, d);
}

cudaError_t load_matrices(int number, bool transposed, const void* rows, unsigned* registers) {
  void (*const kernels[3][2])(const uint4*, unsigned*) = {
      {load<1, false>, load<1, true>}, {load<2, false>, load<2, true>}, {load<4, false>, load<4, true>}};
  return launch(kWarp, kernels[number / 2][transposed], static_cast<const uint4*>(rows), registers);
}

cudaError_t copy_bytes(int bytes, const unsigned char* from, unsigned char* to) {
  return launch(kWarp, bytes == 4 ? copy<4> : bytes == 8 ? copy<8> : copy<16>, from, to);
}

cudaError_t tf32_bits(const float* values, unsigned* bits) { return launch(kWarp, round_to_tf32, values, bits); }
