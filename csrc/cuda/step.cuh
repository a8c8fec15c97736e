// The pointwise half of a step: a GEMM outside multiplies, this kernel does the rest. Every shape and type.
//
// A thread has one unit of one row, and neighbours have neighbouring units, so that all accesses are coalesced. Nothing
// is shared. What crosses steps unrounded goes through memory (Carried), since no thread lives longer than a step; the
// state that the next GEMM reads is y.
#pragma once
#include "masked_unit.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kStepThreads = 128;

template <class Cell, class T>
__global__ void __launch_bounds__(kStepThreads)
    step_forward_kernel(Forward<T> a, int64_t k, const Compute<T>* product, Carried<T> carried) {
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x, H = unsigned(a.H);
  if (i >= unsigned(a.B) * H) return;
  const int64_t b = i / H, j = i % H, t = step_of(k, a.steps, a.reverse);
  if (a.steps == 0) return store_final_state<Cell>(a, b, j, initial_state<Cell>(a, b, j));
  Compute<T> r[Cell::kGates];
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) r[g] = product ? product[(b * Cell::kGates + g) * H + j] : Compute<T>(0);
  State<Compute<T>> state{0, 0};
  if (k == 0) {
    state = initial_state<Cell>(a, b, j);
  } else {
    if constexpr (Cell::kKeepsDirect) state.h = carried.h[i];
    if constexpr (Cell::kHasCellState) state.c = carried.c[i];
  }
  forward_unit<Cell>(a, t, b, j, load_projection<Cell>(a, t, b, j), load_biases<Cell>(a, j), r, state);
  if (k == a.steps - 1) return store_final_state<Cell>(a, b, j, state);
  if constexpr (Cell::kKeepsDirect) carried.h[i] = state.h;
  if constexpr (Cell::kHasCellState) carried.c[i] = state.c;
}

// k = -1 stores the gradients of the initial states.
template <class Cell, class T>
__global__ void __launch_bounds__(kStepThreads)
    step_backward_kernel(Backward<T> a, int64_t k, const Compute<T>* product, Carried<T> carried) {
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x, H = unsigned(a.H);
  if (i >= unsigned(a.B) * H) return;
  const int64_t b = i / H, j = i % H;
  StateGrad<Compute<T>> grad{0, 0};
  if (k == a.steps - 1) {
    grad = final_gradient<Cell>(a, b, j);
  } else {
    if constexpr (Cell::kKeepsDirect) grad.dh = carried.h[i];
    if constexpr (Cell::kHasCellState) grad.dc = carried.c[i];
  }
  const Compute<T> through = product ? product[i] : Compute<T>(0);
  if (k < 0) return store_initial_gradient<Cell>(a, b, j, through, grad);
  Compute<T> delta[Cell::kDeltas];
  backward_unit<Cell>(a, step_of(k, a.steps, a.reverse), b, j, load_kept<Cell>(a, k, b, j), through, grad, delta);
  if constexpr (Cell::kKeepsDirect) carried.h[i] = grad.dh;
  if constexpr (Cell::kHasCellState) carried.c[i] = grad.dc;
}

// With masks. The state that the next product reads is written besides, since it need not be y, and k = -1 is what
// comes before the first step.
template <class Cell, class T>
__global__ void __launch_bounds__(kStepThreads, 1)
    masked_step_forward_kernel(MaskedForward<T> a, int64_t k, const Compute<T>* product, Carried<T> carried,
                               T* operand) {
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x, H = unsigned(a.H);
  if (i >= unsigned(a.B) * H) return;
  const int64_t b = i / H, j = i % H;
  State<Compute<T>> state{0, 0};
  if (k < 0) {
    state = initial_state<Cell>(a, b, j);
  } else {
    state.h = carried.h[i];
    if constexpr (Cell::kHasCellState) state.c = carried.c[i];
    const int64_t t = step_of(k, a.steps, a.reverse);
    const bool idle = flags_of(a, t, b) & kIdle;  // then the product may not be there
    Compute<T> r[Cell::kGates];
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) r[g] = idle ? Compute<T>(0) : product[(b * Cell::kGates + g) * H + j];
    forward_unit<Cell>(a, t, b, j, load_projection<Cell>(a, t, b, j), load_biases<Cell>(a, j), r, state);
  }
  if (k == a.steps - 1) return store_final_state<Cell>(a, b, j, state);
  operand[i] = from_compute<T>(state.h);
  carried.h[i] = state.h;
  if constexpr (Cell::kHasCellState) carried.c[i] = state.c;
}

template <class Cell, class T>
__global__ void __launch_bounds__(kStepThreads, 1)
    masked_step_backward_kernel(MaskedBackward<T> a, int64_t k, const Compute<T>* product, Carried<T> carried) {
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x, H = unsigned(a.H);
  if (i >= unsigned(a.B) * H) return;
  const int64_t b = i / H, j = i % H;
  StateGrad<Compute<T>> grad{0, 0};
  if (k == a.steps - 1) {
    grad = final_gradient<Cell>(a, b, j);
  } else {
    grad.dh = carried.h[i];
    if constexpr (Cell::kHasCellState) grad.dc = carried.c[i];
  }
  // Of a row that has no next step the product may not be there, and is not used.
  const bool any = product && !(flags_of(a, step_of(k + 1, a.steps, a.reverse), b) & kIdle);
  const Compute<T> through = any ? product[i] : Compute<T>(0);
  if (k < 0) return store_initial_gradient<Cell>(a, b, j, through, grad);
  Compute<T> delta[Cell::kDeltas];
  const int64_t t = step_of(k, a.steps, a.reverse);
  backward_unit<Cell>(a, t, b, j, load_kept<Cell>(a, k, b, j), through, grad, delta);
  carried.h[i] = grad.dh;
  if constexpr (Cell::kHasCellState) carried.c[i] = grad.dc;
}

template <class Kernel, class A, class T, class... Others>
cudaError_t launch_step(Kernel kernel, const A& a, int64_t k, const Compute<T>* product, const Carried<T>& carried,
                        cudaStream_t stream, const Others&... others) {
  const int64_t units = a.B * a.H;
  if (units == 0) return cudaSuccess;
  if (units >= int64_t(1) << 31) return cudaErrorInvalidValue;  // indices have 32 bits
  Launch where{dim3(unsigned((units + kStepThreads - 1) / kStepThreads)), dim3(kStepThreads)};
  where.stream = stream;
  return launch(where, kernel, a, k, product, carried, others...);
}

template <class T>
cudaError_t step_forward(CellKind cell, const Forward<T>& a, int64_t k, const typename Carried<T>::F* product,
                         const Carried<T>& carried, cudaStream_t stream) {
  void (*const kernels[])(Forward<T>, int64_t, const Compute<T>*, Carried<T>) = {
      step_forward_kernel<Lstm, T>, step_forward_kernel<Gru, T>, step_forward_kernel<RnnTanh, T>,
      step_forward_kernel<RnnRelu, T>};
  return launch_step(kernels[cell], a, k, product, carried, stream);
}

template <class T>
cudaError_t step_backward(CellKind cell, const Backward<T>& a, int64_t k, const typename Carried<T>::F* product,
                          const Carried<T>& carried, cudaStream_t stream) {
  void (*const kernels[])(Backward<T>, int64_t, const Compute<T>*, Carried<T>) = {
      step_backward_kernel<Lstm, T>, step_backward_kernel<Gru, T>, step_backward_kernel<RnnTanh, T>,
      step_backward_kernel<RnnRelu, T>};
  return launch_step(kernels[cell], a, k, product, carried, stream);
}

template <class T>
cudaError_t step_forward(CellKind cell, const MaskedForward<T>& a, int64_t k, const typename Carried<T>::F* product,
                         const Carried<T>& carried, T* operand, cudaStream_t stream) {
  void (*const kernels[])(MaskedForward<T>, int64_t, const Compute<T>*, Carried<T>, T*) = {
      masked_step_forward_kernel<Lstm, T>, masked_step_forward_kernel<Gru, T>, masked_step_forward_kernel<RnnTanh, T>,
      masked_step_forward_kernel<RnnRelu, T>};
  return launch_step(kernels[cell], a, k, product, carried, stream, operand);
}

template <class T>
cudaError_t step_backward(CellKind cell, const MaskedBackward<T>& a, int64_t k, const typename Carried<T>::F* product,
                          const Carried<T>& carried, cudaStream_t stream) {
  void (*const kernels[])(MaskedBackward<T>, int64_t, const Compute<T>*, Carried<T>) = {
      masked_step_backward_kernel<Lstm, T>, masked_step_backward_kernel<Gru, T>,
      masked_step_backward_kernel<RnnTanh, T>, masked_step_backward_kernel<RnnRelu, T>};
  return launch_step(kernels[cell], a, k, product, carried, stream);
}

#define FUSEDRNN_STEP(T)                                                                                             \
  template cudaError_t step_forward(CellKind, const Forward<T>&, int64_t, const Carried<T>::F*, const Carried<T>&,   \
                                    cudaStream_t);                                                                   \
  template cudaError_t step_backward(CellKind, const Backward<T>&, int64_t, const Carried<T>::F*, const Carried<T>&, \
                                     cudaStream_t);                                                                  \
  template cudaError_t step_forward(CellKind, const MaskedForward<T>&, int64_t, const Carried<T>::F*,                \
                                    const Carried<T>&, T*, cudaStream_t);                                            \
  template cudaError_t step_backward(CellKind, const MaskedBackward<T>&, int64_t, const Carried<T>::F*,              \
                                     const Carried<T>&, cudaStream_t);

}  // namespace cuda
}  // namespace fusedrnn
