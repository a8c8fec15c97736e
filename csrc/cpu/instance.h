// The table of one instruction set. Included by the isa_*.cpp files alone, which differ in the flags that compile them.
#pragma once
#include "gradients.h"
#include "loop.h"

namespace fusedrnn {
namespace {

using cpu::Kernels;

// f(cell) with the type that `kind` names.
template <class F>
static void with_cell(CellKind kind, const F& f) {
  switch (kind) {
    case kLstm: return f(Lstm{});
    case kGru: return f(Gru{});
    case kRnnTanh: return f(RnnTanh{});
    case kRnnRelu: return f(RnnRelu{});
  }
}

template <class T>
static int64_t forward_states(CellKind kind, int64_t B, int64_t H) {
  int64_t size = 0;
  with_cell(kind, [&](auto cell) { size = ForwardStates<decltype(cell), T>::size(B, H); });
  return size;
}

template <class T>
static int64_t backward_states(CellKind kind, int64_t B, int64_t H) {
  int64_t size = 0;
  with_cell(kind, [&](auto cell) { size = BackwardStates<decltype(cell), T>::size(B, H); });
  return size;
}

template <class T>
static void run_project(CellKind kind, const Projection<T>& a, const Runner& runner) {
  with_cell(kind, [&](auto cell) { project<decltype(cell), T>(a, runner); });
}

template <class T>
static void run_forward(CellKind kind, const Forward<T>& a, const Runner& runner) {
  with_cell(kind, [&](auto cell) { forward<decltype(cell), T>(a, runner); });
}

template <class T>
static void run_recompute(CellKind kind, const Recompute<T>& a, const Runner& runner) {
  with_cell(kind, [&](auto cell) { recompute<decltype(cell), T>(a, runner); });
}

template <class T>
static void run_backward(CellKind kind, const Backward<T>& a, const Runner& runner) {
  with_cell(kind, [&](auto cell) { backward<decltype(cell), T>(a, runner); });
}

template <class T>
static void run_activations(const T* x, T* sigmoids, T* tanhs, int64_t n) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < n; i += L) {
    const Pack<T, 1> v{{load_up_to(x + i, n - i)}};
    const Vec<T> s = sigmoid(v).v[0], t = tanh(v).v[0];
    for (int lane = 0; lane < L && i + lane < n; ++lane) sigmoids[i + lane] = s[lane], tanhs[i + lane] = t[lane];
  }
}

// As many chains as hide the latency of two multiply-adds a cycle, in registers alone.
template <class T>
static int64_t multiply_add(int64_t rounds, const Runner& runner) {
  constexpr int kChains = kRegisters == 32 ? 16 : 12;  // all of which FUSEDRNN_EACH unrolls
  runner.run(
      runner.threads,
      [](void* p, int64_t begin, int64_t end) {
        const Vec<T> x = broadcast(T(0.999)), y = broadcast(T(0.001));
        Vec<T> chains[kChains];
        for (Vec<T>& v : chains) v = x;
        for (int64_t i = *static_cast<const int64_t*>(p) * (end - begin); i > 0; --i)
          FUSEDRNN_EACH(k, kChains) chains[k] = chains[k] * x + y;
        Vec<T> sum{};
        for (const Vec<T>& v : chains) sum += v;
        __asm__ volatile("" : : "m"(sum));  // so that the loop is not left out
      },
      &rounds);
  return 2 * kChains * kLanes<T> * rounds * runner.threads;
}

template <class T>
constexpr Kernels<T> kKernels = {
    packed_size<T>,   pack<T>,           pack_rows_at<T>,    pack_bias<T>,        copy<T>,
    states_before<T>, forward_states<T>, backward_states<T>, run_project<T>,      run_forward<T>,
    run_recompute<T>, run_backward<T>,   product<T>,         gradient_scratch<T>, weight_gradients<T>,
    few_products<T>,  add_by_token<T>,   run_activations<T>, multiply_add<T>};

}  // namespace
}  // namespace fusedrnn

// Defines the one function that a file exports.
#define FUSEDRNN_DEFINE_ISA(function, name)                              \
  namespace fusedrnn {                                                   \
  namespace cpu {                                                        \
  const Isa* function() {                                                \
    static constexpr Isa isa{name, &kKernels<float>, &kKernels<double>}; \
    return &isa;                                                         \
  }                                                                      \
  }                                                                      \
  }
