// Small kernels, right and wrong, of two arrays of 256 floats and four flags. A line that the emulator must name says
// so with an arrow and the name of the case; right_... must not be named at all.
#include "csrc/cuda/device.cuh"
#include "kernels.h"

using namespace fusedrnn;

namespace {

constexpr int kValues = 256;

// ---------------------------------------------------------------------------------------------- memory

__global__ void global_overflow(float* a, float* b, unsigned*) {
  b[threadIdx.x] = a[threadIdx.x + 1];  // -> global_overflow
}

__global__ void null_pointer(float*, float* b, unsigned*) {
  const float* none = blockDim.x ? nullptr : b;
  b[threadIdx.x] = none[threadIdx.x];  // -> null_pointer
}

__global__ void misaligned(float* a, float* b, unsigned*) {
  reinterpret_cast<float4*>(b)[threadIdx.x] = *reinterpret_cast<float4*>(a + threadIdx.x);  // -> misaligned
}

__global__ void static_overflow(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [31]);
  tile[threadIdx.x] = a[threadIdx.x];  // -> static_overflow
  b[threadIdx.x] = tile[threadIdx.x];
}

__global__ void part_overflow(float* a, float* b, unsigned*) {
  DYNAMIC_SHARED(carver);
  float* first = carver.take<float>("first", 32);
  float* second = carver.take<float>("second", 32);
  second[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 31) first[threadIdx.x + 1] = 0;  // -> part_overflow
  b[threadIdx.x] = second[threadIdx.x];
}

__global__ void carved_too_much(float* a, float* b, unsigned*) {
  DYNAMIC_SHARED(carver);
  carver.take<float>("first", 40);
  float* second = carver.take<float>("second", 32);  // -> carved_too_much
  second[threadIdx.x] = a[threadIdx.x];
  b[threadIdx.x] = second[threadIdx.x];
}

__global__ void carved_differently(float* a, float* b, unsigned*) {
  DYNAMIC_SHARED(carver);
  float* part = carver.take<float>("part", threadIdx.x % 2 ? 32 : 33);  // -> carved_differently
  part[threadIdx.x] = a[threadIdx.x];
  b[threadIdx.x] = part[threadIdx.x];
}

__global__ void unwritten_shared(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [33]);
  tile[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = tile[threadIdx.x + 1];  // -> unwritten_shared
}

__global__ void right_parts(float* a, float* b, unsigned*) {
  DYNAMIC_SHARED(carver);
  float* first = carver.take<float>("first", 7);
  float* second = carver.take<float>("second", 32);
  if (threadIdx.x < 7) first[threadIdx.x] = a[threadIdx.x];
  second[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = second[31 - threadIdx.x] + first[threadIdx.x % 7];
}

template <int Twice>
__device__ void add_reversed(const float* a, float* b) {
  SHARED_ARRAY(float, first, [32]);
  SHARED_ARRAY(float, second, [32]);
  first[threadIdx.x] = a[threadIdx.x];
  second[threadIdx.x] = float(Twice) * a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] += first[31 - threadIdx.x] + second[31 - threadIdx.x];
}
__global__ void right_arrays(float* a, float* b, unsigned*) {
  add_reversed<10>(a, b);
  add_reversed<20>(a, b);
}

// ---------------------------------------------------------------------------------------------- races in a block

template <bool Barrier>
__device__ void neighbour(const float* a, float* b) {
  SHARED_ARRAY(float, tile, [64]);
  tile[threadIdx.x] = 0;  // so that nothing is found but the race
  __syncthreads();
  tile[threadIdx.x] = a[threadIdx.x];
  if constexpr (Barrier) __syncthreads();
  b[threadIdx.x] = tile[63 - threadIdx.x];  // -> missing_barrier
}
__global__ void right_barrier(float* a, float* b, unsigned*) { neighbour<true>(a, b); }
__global__ void missing_barrier(float* a, float* b, unsigned*) { neighbour<false>(a, b); }

// Each round reads what all wrote, so the next must not write before all have read.
template <bool Barrier>
__device__ void rounds(const float* a, float* b) {
  SHARED_ARRAY(float, tile, [64]);
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    tile[threadIdx.x] = a[threadIdx.x] + float(i);  // -> reused_too_early
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if constexpr (Barrier) __syncthreads();
  }
  b[threadIdx.x] = sum;
}
__global__ void right_rounds(float* a, float* b, unsigned*) { rounds<true>(a, b); }
__global__ void reused_too_early(float* a, float* b, unsigned*) { rounds<false>(a, b); }

template <bool Sync>
__device__ void within_warp(const float* a, float* b) {
  SHARED_ARRAY(float, tile, [32]);
  tile[threadIdx.x] = 0;
  __syncwarp();
  tile[threadIdx.x] = a[threadIdx.x];
  if constexpr (Sync) __syncwarp();
  float v = tile[31 - threadIdx.x];  // -> missing_syncwarp
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  b[threadIdx.x] = v;
}
__global__ void right_syncwarp(float* a, float* b, unsigned*) { within_warp<true>(a, b); }
__global__ void missing_syncwarp(float* a, float* b, unsigned*) { within_warp<false>(a, b); }

// A shuffle meets the lanes, but orders none of their accesses to memory.
__global__ void shuffle_for_syncwarp(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [32]);
  tile[threadIdx.x] = 0;
  __syncwarp();
  tile[threadIdx.x] = a[threadIdx.x];
  const float v = __shfl_sync(0xffffffffu, a[threadIdx.x], 3);
  b[threadIdx.x] = v + tile[31 - threadIdx.x];  // -> shuffle_for_syncwarp
}

__global__ void right_half_warps(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [32]);
  const unsigned half = threadIdx.x / 16 ? 0xffff0000u : 0xffffu;
  tile[threadIdx.x] = a[threadIdx.x];
  __syncwarp(half);
  b[threadIdx.x] = tile[threadIdx.x ^ 15];
}

__global__ void half_warps_mixed(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [32]);
  const unsigned half = threadIdx.x / 16 ? 0xffff0000u : 0xffffu;
  tile[threadIdx.x] = a[threadIdx.x];
  __syncwarp();
  tile[threadIdx.x] = 1;
  __syncwarp(half);
  b[threadIdx.x] = tile[threadIdx.x ^ 31];  // -> half_warps_mixed
}

// ---------------------------------------------------------------------------------------------- barriers

__global__ void two_barriers(float* a, float* b, unsigned*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();  // -> two_barriers
  b[threadIdx.x] = a[threadIdx.x];
}

__global__ void barrier_of_some(float* a, float* b, unsigned*) {
  if (threadIdx.x < 48) __syncthreads();  // -> barrier_of_some
  b[threadIdx.x] = a[threadIdx.x];
}

__global__ void shuffle_of_some(float* a, float* b, unsigned*) {
  float v = a[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // -> shuffle_of_some
  __syncthreads();
  b[threadIdx.x] = v;
}

__global__ void shuffle_from_the_gone(float* a, float* b, unsigned*) {
  if (threadIdx.x == 5) return;
  b[threadIdx.x] = __shfl_sync(0xffffffffu, a[threadIdx.x], 5);  // -> shuffle_from_the_gone
}

__global__ void grid_barrier_in_plain_launch(float* a, float* b, unsigned*) {
  b[threadIdx.x] = a[threadIdx.x];
  cooperative_groups::this_grid().sync();  // -> grid_barrier_in_plain_launch
}

__global__ void right_votes(float* a, float* b, unsigned*) {
  const int positive = __syncthreads_count(a[threadIdx.x] > 0);
  b[threadIdx.x] = float(positive + __popc(__ballot_sync(0xffffffffu, a[threadIdx.x] > 0)));
}

// ---------------------------------------------------------------------------------------------- between blocks

__global__ void blocks_share(float* a, float* b, unsigned*) {
  if (threadIdx.x == 0) b[0] = a[blockIdx.x];  // -> blocks_share
}

__global__ void right_atomics(float* a, float*, unsigned* flags) {
  atomicAdd(&flags[threadIdx.x % 4], 1u);
  atomicMax(&flags[0], unsigned(a[0] > 0));
}

// How many threads took a ticket between two of this thread's.
__global__ void right_tickets(float*, float* b, unsigned* flags) {
  const unsigned first = atomicAdd(&flags[0], 1u), second = atomicAdd(&flags[0], 1u);
  b[blockIdx.x * blockDim.x + threadIdx.x] = float(second - first - 1);
}

__global__ void right_grid_barrier(float* a, float* b, unsigned*) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(gridDim.x * blockDim.x);
  b[i] = a[i];
  cooperative_groups::this_grid().sync();
  const float v = b[n - 1 - i];
  cooperative_groups::this_grid().sync();
  b[i] = v;
}

__global__ void missing_grid_barrier(float* a, float* b, unsigned*) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(gridDim.x * blockDim.x);
  b[i] = 0;
  cooperative_groups::this_grid().sync();
  b[i] = a[i];
  a[i] = b[n - 1 - i];  // -> missing_grid_barrier
}

enum class Flag { kReleaseAcquire, kRelaxedStore, kRelaxedLoad, kStoredOver, kFence };

// Block 0 gives block 1 what all of its threads wrote, through one of them on each side.
template <Flag How>
__device__ void hand_over(const float* a, float* b, unsigned* flag) {
  const unsigned i = threadIdx.x;
  if (blockIdx.x == 0) {
    b[i] = a[i] + 1;
    __syncthreads();
    if (i == 0) {
      if constexpr (How == Flag::kFence) fence_gpu();
      if constexpr (How == Flag::kReleaseAcquire || How == Flag::kRelaxedLoad)
        store_release(flag, 1);
      else
        store_relaxed(flag, 1);
    }
  } else {
    if (i == 0) spin_until([&] { return (How == Flag::kRelaxedLoad ? load_relaxed(flag) : load_acquire(flag)) == 1; });
    __syncthreads();
    b[128 + i] = b[63 - i];  // -> relaxed_store -> relaxed_load -> fence_alone
  }
}
__global__ void right_hand_over(float* a, float* b, unsigned* f) { hand_over<Flag::kReleaseAcquire>(a, b, f); }
__global__ void relaxed_store(float* a, float* b, unsigned* f) { hand_over<Flag::kRelaxedStore>(a, b, f); }
__global__ void relaxed_load(float* a, float* b, unsigned* f) { hand_over<Flag::kRelaxedLoad>(a, b, f); }
__global__ void fence_alone(float* a, float* b, unsigned* f) { hand_over<Flag::kFence>(a, b, f); }

// A warp instead of a block on either side.
__global__ void right_hand_over_by_warps(float* a, float* b, unsigned* flag) {
  const unsigned i = threadIdx.x;
  if (i >= 32) return;
  if (blockIdx.x == 0) {
    b[i] = a[i] + 1;
    __syncwarp();
    if (i == 0) add_release(flag, 1);
  } else {
    if (i == 0) spin_until([&] { return load_acquire(flag) == 1; });
    __syncwarp();
    b[128 + i] = b[31 - i];
  }
}

// The release came before the data.
__global__ void released_too_early(float* a, float* b, unsigned* flag) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    store_release(flag, 1);
    b[0] = a[0];
  } else {
    spin_until([&] { return load_acquire(flag) == 1; });
    for (int i = 0; i < 3; ++i) (void)load_acquire(flag);
    a[1] = b[0];  // -> released_too_early
  }
}

// Relaxed additions keep what was released, a relaxed store does not.
template <bool Store>
__device__ void released_through(float* a, float* b, unsigned* flag) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    b[0] = a[0];
    store_release(flag, 1);
  } else if (blockIdx.x == 1) {
    spin_until([&] { return load_relaxed(flag) == 1; });
    if constexpr (Store)
      store_relaxed(flag, 2);
    else
      add_relaxed(flag, 1);
  } else if (blockIdx.x == 2) {
    spin_until([&] { return load_relaxed(flag) == 2; });
    (void)load_acquire(flag);
    a[1] = b[0];  // -> stored_over
  }
}
__global__ void right_added_to(float* a, float* b, unsigned* f) { released_through<false>(a, b, f); }
__global__ void stored_over(float* a, float* b, unsigned* f) { released_through<true>(a, b, f); }

template <bool Release>
__device__ void meet(float* a, float* b, unsigned* arrived) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(gridDim.x * blockDim.x);
  for (unsigned t = 1; t <= 3; ++t) {
    b[i] = a[i] + float(t);
    for (unsigned phase = 2 * t - 1; phase <= 2 * t; ++phase) {
      __syncthreads();
      if (threadIdx.x == 0) {
        if constexpr (Release)
          add_release(arrived, 1);
        else
          add_relaxed(arrived, 1);
        spin_until([&] { return load_acquire(arrived) >= phase * gridDim.x; });
      }
      __syncthreads();
      if (phase % 2) a[i] = b[n - 1 - i];  // -> meeting_without_release
    }
  }
}
__global__ void right_meeting(float* a, float* b, unsigned* f) { meet<true>(a, b, f); }
__global__ void meeting_without_release(float* a, float* b, unsigned* f) { meet<false>(a, b, f); }

__global__ void constant_cache(float* a, float* b, unsigned*) {
  b[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  a[threadIdx.x] = __ldg(b + 63 - threadIdx.x);  // -> constant_cache
}

__global__ void endless_spin(float*, float*, unsigned* flag) {
  spin_until([&] { return load_acquire(flag) == 7; });  // -> endless_spin
}

__global__ void endless_plain_loop(float*, float*, unsigned* flag) {
  while (*static_cast<volatile unsigned*>(flag) != 7) {  // -> endless_plain_loop
  }
}

// ---------------------------------------------------------------------------------------------- asynchronous copies

enum class Wait { kRight, kNone, kOneTooFew, kNotCommitted, kNoBarrier };

template <Wait How>
__device__ void through_shared(const float* a, float* b) {
  SHARED_ARRAY(float, tile, [2][64]);
  const int i = int(threadIdx.x);
  for (int part = 0; part < 2; ++part) {
    cp_async<4>(&tile[part][i], a + part * 64 + i);
    if (How != Wait::kNotCommitted || part == 0) cp_async_commit();
  }
  if constexpr (How == Wait::kOneTooFew)
    cp_async_wait<1>();
  else if constexpr (How != Wait::kNone)
    cp_async_wait<0>();
  if constexpr (How != Wait::kNoBarrier) __syncthreads();
  b[i] = tile[0][63 - i];       // -> no_wait -> no_barrier_after_wait
  b[64 + i] = tile[1][63 - i];  // -> wait_for_one_too_few -> not_committed
}
__global__ void right_async_copy(float* a, float* b, unsigned*) { through_shared<Wait::kRight>(a, b); }
__global__ void no_wait(float* a, float* b, unsigned*) { through_shared<Wait::kNone>(a, b); }
__global__ void wait_for_one_too_few(float* a, float* b, unsigned*) { through_shared<Wait::kOneTooFew>(a, b); }
__global__ void not_committed(float* a, float* b, unsigned*) { through_shared<Wait::kNotCommitted>(a, b); }
__global__ void no_barrier_after_wait(float* a, float* b, unsigned*) { through_shared<Wait::kNoBarrier>(a, b); }

// The next copy into a buffer must not start before all have read it.
__global__ void copied_over_too_early(float* a, float* b, unsigned*) {
  SHARED_ARRAY(float, tile, [64]);
  const int i = int(threadIdx.x);
  for (int part = 0; part < 2; ++part) {
    cp_async<4>(&tile[i], a + part * 64 + i);  // -> copied_over_too_early
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    b[part * 64 + i] = tile[63 - i];
  }
}

// ---------------------------------------------------------------------------------------------- table

struct Case {
  const char* name;
  void (*kernel)(float*, float*, unsigned*);
  unsigned blocks, threads;
  bool cooperative = false;
  size_t shared_bytes = 0;
};
#define CASE(kernel, ...) {#kernel, kernel, __VA_ARGS__}
const Case kCases[] = {
    CASE(global_overflow, 1, kValues),
    CASE(null_pointer, 1, 32),
    CASE(misaligned, 1, 32),
    CASE(static_overflow, 1, 32),
    CASE(part_overflow, 1, 32, false, 256),
    CASE(carved_too_much, 1, 32, false, 256),
    CASE(carved_differently, 1, 32, false, 256),
    CASE(unwritten_shared, 1, 32),
    CASE(right_parts, 1, 32, false, 160),
    CASE(right_arrays, 1, 32),
    CASE(right_barrier, 1, 64),
    CASE(missing_barrier, 1, 64),
    CASE(right_rounds, 1, 64),
    CASE(reused_too_early, 1, 64),
    CASE(right_syncwarp, 1, 32),
    CASE(missing_syncwarp, 1, 32),
    CASE(shuffle_for_syncwarp, 1, 32),
    CASE(right_half_warps, 1, 32),
    CASE(half_warps_mixed, 1, 32),
    CASE(two_barriers, 1, 64),
    CASE(barrier_of_some, 1, 64),
    CASE(shuffle_of_some, 1, 64),
    CASE(shuffle_from_the_gone, 1, 32),
    CASE(grid_barrier_in_plain_launch, 1, 32),
    CASE(right_votes, 1, 64),
    CASE(blocks_share, 3, 32),
    CASE(right_atomics, 3, 64),
    CASE(right_tickets, 3, 32, true),
    CASE(right_grid_barrier, 4, 64, true),
    CASE(missing_grid_barrier, 4, 64, true),
    CASE(right_hand_over, 2, 64, true),
    CASE(relaxed_store, 2, 64, true),
    CASE(relaxed_load, 2, 64, true),
    CASE(fence_alone, 2, 64, true),
    CASE(right_hand_over_by_warps, 2, 64, true),
    CASE(released_too_early, 2, 32, true),
    CASE(right_added_to, 3, 32, true),
    CASE(stored_over, 3, 32, true),
    CASE(right_meeting, 4, 64, true),
    CASE(meeting_without_release, 4, 64, true),
    CASE(constant_cache, 1, 64),
    CASE(endless_spin, 2, 32, true),
    CASE(endless_plain_loop, 1, 1),
    CASE(right_async_copy, 1, 64),
    CASE(no_wait, 1, 64),
    CASE(wait_for_one_too_few, 1, 64),
    CASE(not_committed, 1, 64),
    CASE(no_barrier_after_wait, 1, 64),
    CASE(copied_over_too_early, 1, 64),
};
#undef CASE

}  // namespace

const char* case_name(int number) {
  return number < int(sizeof kCases / sizeof *kCases) ? kCases[number].name : nullptr;
}

cudaError_t run_case(int number, float* a, float* b, unsigned* flags) {
  const Case& c = kCases[number];
  return launch({dim3(c.blocks), dim3(c.threads), c.shared_bytes, c.cooperative}, c.kernel, a, b, flags);
}
