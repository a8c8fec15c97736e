// CUDA C++ for a host compiler: keywords, built-in variables and functions, and the launch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

// CUDA's own headers that are plain C++: vector types, the half types, declarations of the runtime API.
// clang-format off
#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_runtime_api.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// clang-format on

#undef __shared__
#define __shared__ use_SHARED_ARRAY_or_DYNAMIC_SHARED
#undef __launch_bounds__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// An array of the block, by the place of its declaration (and the template arguments there).
#define EMULATOR_SHARED_ARRAY(type, name, ...)                                      \
  typedef type name##_type __VA_ARGS__;                                             \
  name##_type& name = *static_cast<name##_type*>(::emulator::static_shared(         \
      []() -> const void* {                                                         \
        static char key; /* no constant, which the linker may merge with another */ \
        return &key;                                                                \
      }(),                                                                          \
      sizeof(name##_type), #name))

// ---------------------------------------------------------------------------------------------- barriers, fences

inline void __syncthreads(EMULATOR_HERE) { emulator::block_barrier(false, "__syncthreads", here); }
inline int __syncthreads_count(int p, EMULATOR_HERE) {
  return emulator::block_barrier(p != 0, "__syncthreads_count", here);
}
inline int __syncthreads_or(int p, EMULATOR_HERE) {
  return emulator::block_barrier(p != 0, "__syncthreads_or", here) > 0;
}
inline int __syncthreads_and(int p, EMULATOR_HERE) {
  return emulator::block_barrier(p == 0, "__syncthreads_and", here) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_HERE) {
  emulator::collective({"__syncwarp", nullptr, false, true}, mask, {}, here);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __trap(EMULATOR_HERE) { emulator::trap(here); }
inline void __nanosleep(unsigned, EMULATOR_HERE) { emulator::poll(nullptr, 0, here); }

// ---------------------------------------------------------------------------------------------- warps

namespace emulator {

template <class T>
void exchange_values(const Lane (&lanes)[32], unsigned mask) {
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) std::memcpy(lanes[i].out, lanes[lanes[i].number].in, sizeof(T));
}
template <class T>
EMULATOR_UNSEEN T shuffle(const char* name, unsigned mask, const T& value, int from, Place here) {
  T result;
  collective({name, exchange_values<T>, true, false}, mask, {&value, &result, from}, here);
  return result;
}
inline void exchange_votes(const Lane (&lanes)[32], unsigned mask) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && lanes[i].number) votes |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) *static_cast<unsigned*>(lanes[i].out) = votes;
}
EMULATOR_UNSEEN inline unsigned vote(const char* name, unsigned mask, bool yes, Place here) {
  unsigned votes = 0;
  collective({name, exchange_votes, false, false}, mask, {nullptr, &votes, yes}, here);
  return votes;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, EMULATOR_HERE) {
  const int own = int(emulator::lane());
  return emulator::shuffle("__shfl_sync", mask, v, (own & ~(width - 1)) | (from & (width - 1)), here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned distance, int width = 32, EMULATOR_HERE) {
  const int own = int(emulator::lane()), from = own - int(distance), first = own & ~(width - 1);
  return emulator::shuffle("__shfl_up_sync", mask, v, from < first ? own : from, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned distance, int width = 32, EMULATOR_HERE) {
  const int own = int(emulator::lane()), from = own + int(distance), last = own | (width - 1);
  return emulator::shuffle("__shfl_down_sync", mask, v, from > last ? own : from, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMULATOR_HERE) {
  const int own = int(emulator::lane()), from = own ^ bits, last = own | (width - 1);
  return emulator::shuffle("__shfl_xor_sync", mask, v, from > last ? own : from, here);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::vote("__ballot_sync", mask, p != 0, here);
}
inline int __any_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::vote("__any_sync", mask, p != 0, here) != 0;
}
inline int __all_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::vote("__all_sync", mask, p == 0, here) == 0;
}

// ---------------------------------------------------------------------------------------------- atomics, loads, stores

namespace emulator {

// One thread of the system runs all: nothing comes between the load and the store. Without order between threads.
template <class T, class F>
EMULATOR_UNSEEN T modify(T* p, Place here, F f) {
  touch(p, sizeof(T), Access::AtomicModify, here);
  const T old = *p;
  *p = f(old);
  return old;
}
template <class T>
using Value = std::common_type_t<T>;  // not deduced: atomicAdd(&float, 1) is one of floats

}  // namespace emulator

#define EMULATOR_ATOMIC(name, result)                                   \
  template <class T>                                                    \
  T name(T* p, emulator::Value<T> v, EMULATOR_HERE) {                   \
    return emulator::modify(p, here, [&](T old) { return T(result); }); \
  }
EMULATOR_ATOMIC(atomicAdd, old + v)
EMULATOR_ATOMIC(atomicSub, old - v)
EMULATOR_ATOMIC(atomicMax, old < v ? v : old)
EMULATOR_ATOMIC(atomicMin, v < old ? v : old)
EMULATOR_ATOMIC(atomicOr, old | v)
EMULATOR_ATOMIC(atomicAnd, old& v)
EMULATOR_ATOMIC(atomicExch, ((void)old, v))
#undef EMULATOR_ATOMIC
template <class T>
T atomicCAS(T* p, emulator::Value<T> expected, emulator::Value<T> v, EMULATOR_HERE) {
  return emulator::modify(p, here, [&](T old) { return old == expected ? v : old; });
}

template <class T>
EMULATOR_UNSEEN T __ldg(const T* p, EMULATOR_HERE) {
  emulator::touch_constant(p, sizeof(T), here);
  return *p;
}
// The caller's own access is what the checker sees of these.
template <class T>
const T& __ldcg(const T* p) {
  return *p;
}
template <class T>
const T& __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, emulator::Value<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, emulator::Value<T> v) {
  *p = v;
}

// ---------------------------------------------------------------------------------------------- arithmetic

using std::max;
using std::min;

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float rsqrtf(float a) { return 1 / std::sqrt(a); }
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// ---------------------------------------------------------------------------------------------- launch

namespace emulator {

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*), void* arguments,
                size_t bytes);

template <class... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<std::decay_t<P>...> arguments;

  // Each thread gets a copy of the arguments.
  static void enter(void* p) {
    const Call& call = *static_cast<Call*>(p);
    std::apply([&](const auto&... a) { call.kernel(std::decay_t<decltype(a)>(a)...); }, call.arguments);
  }
};

}  // namespace emulator

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  emulator::Call<P...> call{kernel, {std::forward<A>(arguments)...}};
  return emulator::run(*config, reinterpret_cast<const void*>(kernel), call.enter, &call, sizeof call);
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(P...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, bytes);
}
