// Flags of rows, and copies that look at them: memory alone, so that one type of each size serves.
#include "compat.cuh"
#include "kernels.h"

namespace fusedrnn {
namespace cuda {

constexpr int kMaskThreads = 256, kOffsetsAtATime = 256;

// The i-th thread of so many; the launch has at least as many.
static FUSEDRNN_DEVICE int64_t thread_of_grid() { return int64_t(blockIdx.x) * kMaskThreads + threadIdx.x; }

static cudaError_t for_each(int64_t count, Launch& where, cudaStream_t stream) {
  const int64_t blocks = (count + kMaskThreads - 1) / kMaskThreads;
  if (blocks >= int64_t(1) << 31) return cudaErrorInvalidValue;
  where = {dim3(unsigned(blocks)), dim3(kMaskThreads)};
  where.stream = stream;
  return cudaSuccess;
}

__global__ void __launch_bounds__(kMaskThreads) flags_kernel(MaskSources a, RowFlags* flags) {
  const int64_t i = thread_of_grid();
  if (i >= a.T * a.B) return;
  const int64_t t = i / a.B, b = i % a.B;
  if (a.lengths && (a.lengths[b] < 0 || a.lengths[b] > a.T)) __trap();
  const bool idle = (a.lengths && t >= a.lengths[b]) || (a.offsets && b >= a.offsets[t + 1] - a.offsets[t]);
  RowFlags value = idle ? kIdle : 0;
  if (!idle && a.resets && *(a.offsets ? a.resets.at(a.offsets[t] + b) : a.resets.at(t, b))) value |= kZeroed;
  if (!idle && a.detach_every > 0 && t > 0 && t % a.detach_every == 0) value |= kDetached;
  flags[i] = value;
}

// Arguments of a kernel: a graph keeps them, where it would keep a pointer of the host alone.
struct Offsets {
  int64_t v[kOffsetsAtATime];
};
__global__ void __launch_bounds__(kOffsetsAtATime) offsets_kernel(Offsets from, int count, int64_t* to) {
  if (int(threadIdx.x) < count) to[threadIdx.x] = from.v[threadIdx.x];
}

template <class V>
__global__ void __launch_bounds__(kMaskThreads) copy_kernel(MaskedCopy<V> a) {
  const int64_t i = thread_of_grid();
  if (i >= a.T * a.B * a.columns) return;
  const int64_t j = i % a.columns, row = i / a.columns, t = row / a.B, b = row % a.B;
  const int64_t earlier = a.reverse ? t + 1 : t - 1, source = a.before ? earlier : t;
  const RowFlags flags = a.masks.flags[row];
  if (flags & kIdle && a.masks.offsets) return;
  V value = 0;
  if (!(flags & kIdle) && !(a.before && flags & kZeroed)) {
    if (a.before && (earlier < 0 || earlier >= a.T || a.masks.flags[earlier * a.B + b] & kIdle)) {
      if (a.initial) value = a.initial[b * a.columns + j];
    } else {
      const Masks::Place at = a.masks.place(source, b);
      value = a.from.at(at.t, at.b)[j];
    }
  }
  const Masks::Place at = a.masks.place(t, b);
  a.to.at(at.t, at.b)[j] = value;
}

cudaError_t make_flags(const MaskSources& a, RowFlags* flags, cudaStream_t stream) {
  Launch where;
  if (a.T * a.B == 0) return cudaSuccess;
  const cudaError_t error = for_each(a.T * a.B, where, stream);
  return error == cudaSuccess ? launch(where, flags_kernel, a, flags) : error;
}

cudaError_t copy_offsets(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream) {
  Launch where{dim3(1), dim3(kOffsetsAtATime)};
  where.stream = stream;
  for (int64_t i = 0; i < count; i += kOffsetsAtATime) {
    const int n = count - i < kOffsetsAtATime ? int(count - i) : kOffsetsAtATime;
    Offsets piece{};
    for (int j = 0; j < n; ++j) piece.v[j] = from[i + j];
    const cudaError_t error = launch(where, offsets_kernel, piece, n, to + i);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class V>
cudaError_t masked_copy(const MaskedCopy<V>& a, cudaStream_t stream) {
  const int64_t count = a.T * a.B * a.columns;
  Launch where;
  if (count == 0) return cudaSuccess;
  const cudaError_t error = for_each(count, where, stream);
  return error == cudaSuccess ? launch(where, copy_kernel<V>, a) : error;
}

template cudaError_t masked_copy(const MaskedCopy<unsigned short>&, cudaStream_t);
template cudaError_t masked_copy(const MaskedCopy<unsigned>&, cudaStream_t);
template cudaError_t masked_copy(const MaskedCopy<unsigned long long>&, cudaStream_t);

}  // namespace cuda
}  // namespace fusedrnn
