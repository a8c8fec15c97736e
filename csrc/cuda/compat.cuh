// What kernels are written with: CUDA under nvcc, and the emulator of tests/emulator/ under any other compiler, which
// brings its own cuda_runtime.h and cooperative_groups.h. Shared memory is declared and kernels are launched through
// this header alone, because a host compiler has no words for either.
#pragma once
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <mutex>
#include <utility>

#include "../inline.h"

// The architecture whose instructions a kernel may use. nvcc's host pass reads kernels too, but compiles none of them.
#if defined(__CUDA_ARCH__)
#define FUSEDRNN_ARCH __CUDA_ARCH__
#elif defined(FUSEDRNN_EMULATED_ARCH)
#define FUSEDRNN_ARCH FUSEDRNN_EMULATED_ARCH
#else
#define FUSEDRNN_ARCH 1200
#endif

// SHARED_ARRAY(float, tile, [32][33]) declares an array of the block, 16-byte aligned.
// DYNAMIC_SHARED(carver) declares a SharedCarver of the block's dynamic shared memory.
#if defined(__CUDACC__)
#define FUSEDRNN_DEVICE __device__ __forceinline__
#define SHARED_ARRAY(type, name, ...) __shared__ alignas(16) type name __VA_ARGS__
#define DYNAMIC_SHARED(carver)                                             \
  extern __shared__ __align__(16) unsigned char fusedrnn_dynamic_shared[]; \
  ::fusedrnn::SharedCarver carver(fusedrnn_dynamic_shared)
#else
#define FUSEDRNN_DEVICE inline
#define SHARED_ARRAY(type, name, ...) EMULATOR_SHARED_ARRAY(type, name, __VA_ARGS__)
#define DYNAMIC_SHARED(carver) ::fusedrnn::SharedCarver carver(::emulator::dynamic_shared())
#endif

// The last parameter of a function whose caller the emulator names in what it reports.
#if defined(__CUDACC__)
#define FUSEDRNN_CALLER
#else
#define FUSEDRNN_CALLER , EMULATOR_HERE
#endif

namespace fusedrnn {

// Cuts dynamic shared memory into arrays, one after the other, each 16-byte aligned. Without memory it only measures,
// so that one function lays the arrays out in the kernel and tells the host how many bytes they take. The emulator
// hands out arrays that do not touch, to see what is written beyond the end of one.
class SharedCarver {
 public:
  SharedCarver() = default;
  FUSEDRNN_INLINE explicit SharedCarver(unsigned char* base) : base_(base) {}

  template <class T>
  FUSEDRNN_INLINE T* take([[maybe_unused]] const char* name, size_t count FUSEDRNN_CALLER) {
    const size_t at = bytes_, size = count * sizeof(T);
    bytes_ = (at + size + 15) / 16 * 16;
#if defined(__CUDACC__)
    return reinterpret_cast<T*>(base_ + at);
#else
    return base_ ? static_cast<T*>(::emulator::dynamic_shared_part(at, size, name, here)) : nullptr;
#endif
  }
  FUSEDRNN_INLINE size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_ = nullptr;
  size_t bytes_ = 0;
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  cudaStream_t stream = nullptr;
};

// A kernel has to ask for more than 48 KiB of dynamic shared memory. What it has got is never taken back: another
// thread may be about to launch it with more.
template <class Kernel>
cudaError_t ask_for_shared(Kernel kernel, size_t bytes) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (bytes <= kWithoutAsking) return cudaSuccess;
  static std::mutex one_thread;
  const std::lock_guard<std::mutex> lock(one_thread);
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess || attributes.maxDynamicSharedSizeBytes >= int(bytes)) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

// How many blocks of such a launch a multiprocessor of the current device can hold at once.
template <class Kernel>
cudaError_t resident_blocks(Kernel kernel, int threads, size_t shared_bytes, int* blocks) {
  const cudaError_t error = ask_for_shared(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(const Launch& where, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const cudaError_t error = ask_for_shared(kernel, where.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = where.grid;
  config.blockDim = where.block;
  config.dynamicSmemBytes = where.shared_bytes;
  config.stream = where.stream;
  config.attrs = &cooperative;
  config.numAttrs = where.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace fusedrnn
