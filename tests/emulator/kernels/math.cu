// The functions of math.cuh, and the cells on scalars: one thread a value.
#include "csrc/cuda/cells.cuh"
#include "kernels.h"

using namespace fusedrnn;

namespace {

template <class T>
__global__ void functions(const T* x, T* y, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  y[i] = fusedrnn::sigmoid(x[i]);
  y[n + i] = fusedrnn::tanh(x[i]);
  y[2 * n + i] = relu(x[i]);
  y[3 * n + i] = where_positive(x[i], T(2));
}

// One step forward and back: x and r are [kGates][n], states [2][n] (h, c), deltas [kDeltas][n], grads [2][n] (dh, dc).
template <class Cell, class T>
__global__ void step(const T* x, const T* r, T* states, T* grads, T* deltas, int n) {
  using F = Compute<T>;
  constexpr int kSaved = Cell::kSaved ? Cell::kSaved : 1;
  const int i = int(threadIdx.x);
  F own_x[Cell::kGates], own_r[Cell::kGates], saved[kSaved], delta[Cell::kDeltas];
  for (int g = 0; g < Cell::kGates; ++g) own_x[g] = to_compute(x[g * n + i]), own_r[g] = to_compute(r[g * n + i]);
  const State<F> before{to_compute(states[i]), to_compute(states[n + i])};
  State<F> after = before;
  Cell::forward(own_x, own_r, after, saved);
  states[i] = from_compute<T>(after.h), states[n + i] = from_compute<T>(after.c);
  StateGrad<F> grad{to_compute(grads[i]), to_compute(grads[n + i])};
  Cell::backward(saved, Step<F>{before.h, after.h, before.c, after.c}, grad, delta);
  grads[i] = from_compute<T>(grad.dh), grads[n + i] = from_compute<T>(grad.dc);
  // By input gate where there is one, as the gradient of x has them.
  for (int slot = 0; slot < Cell::kGates; ++slot) deltas[input_gate<Cell>(slot) * n + i] = from_compute<T>(delta[slot]);
}

template <class T>
using StepKernel = void (*)(const T*, const T*, T*, T*, T*, int);

template <class T>
cudaError_t run_step(int cell, const void* x, const void* r, void* states, void* grads, void* deltas, int n) {
  const StepKernel<T> kernels[] = {step<Lstm, T>, step<Gru, T>, step<RnnTanh, T>, step<RnnRelu, T>};
  return launch({dim3(1), dim3(unsigned(n))}, kernels[cell], static_cast<const T*>(x), static_cast<const T*>(r),
                static_cast<T*>(states), static_cast<T*>(grads), static_cast<T*>(deltas), n);
}

}  // namespace

cudaError_t functions_float(const float* x, float* y, int n) {
  return launch({dim3(unsigned(n + 127) / 128), dim3(128)}, functions<float>, x, y, n);
}
cudaError_t functions_double(const double* x, double* y, int n) {
  return launch({dim3(unsigned(n + 127) / 128), dim3(128)}, functions<double>, x, y, n);
}

cudaError_t cell_step(int cell, int type, const void* x, const void* r, void* states, void* grads, void* deltas,
                      int n) {
  switch (type) {
    case 0: return run_step<double>(cell, x, r, states, grads, deltas, n);
    case 1: return run_step<float>(cell, x, r, states, grads, deltas, n);
    case 2: return run_step<__half>(cell, x, r, states, grads, deltas, n);
    default: return run_step<__nv_bfloat16>(cell, x, r, states, grads, deltas, n);
  }
}
