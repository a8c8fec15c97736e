// The CPU kernels as the rest of the library sees them: plain structs of pointers and sizes, and one table of functions
// per instruction set. No torch in here, and nothing but C types, so that every instruction set shares the
// declarations.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../sequence.h"

namespace fusedrnn {
namespace cpu {

enum CellKind { kLstm, kGru, kRnnTanh, kRnnRelu, kCells };

// Somebody's threads. run() calls body(context, begin, end) on pieces that make up [0, n), on as many threads as it
// likes, even one after the other.
struct Runner {
  typedef void (*Body)(void* context, int64_t begin, int64_t end);
  void (*run)(int64_t n, Body body, void* context);
  int threads;
};

// One layer in one direction. A matrix "per row" has one row per step and batch entry, numbered by Sequence::row.
template <class T>
struct Forward {
  Sequence sequence;
  int64_t H;
  int64_t first, last;  // the steps of this call, in the order in which they are run; state is kept in the workspace
  T* x;                 // per row, w_ih x without bias; with save, replaced by what backward needs
  int64_t ldx;
  int64_t x_row0;  // the row that x points at
  bool save;
  const T *h0, *c0;             // [B, H]
  const T *w_hh, *b_ih, *b_hh;  // [G H, H], [G H] or null
  T* y;                         // per row, [H]
  T* c;                         // per row, [H], or null: only with save
  T *h_n, *c_n;                 // [B, H]
  T* workspace;                 // forward_workspace() values, aligned to 64 bytes
};

template <class T>
struct Backward {
  Sequence sequence;
  int64_t H;
  const T* saved;  // per row, what forward left in x
  int64_t ld_saved;
  const T *y, *c;  // per row, [H]
  const T *h0, *c0, *w_hh;
  const T *dy, *dh_n, *dc_n;  // gradients of y (per row), h_n and c_n; null means zero
  T* delta;                   // per row, kDeltas [H] each: gradients of the pre-activations
  T *dh0, *dc0;               // [B, H]
  T* workspace;
};

// c[M, N] = a b, or c += a b with add. Of each factor's strides one is 1.
template <class T>
struct Gemm {
  int64_t M, N, K;
  const T* a;
  int64_t a_row, a_k;  // strides of a[M, K]
  const T* b;
  int64_t b_k, b_n;  // strides of b[K, N]
  T* c;
  int64_t ldc;
  bool add;
  T* workspace;  // product_workspace() values, aligned to 64 bytes
};

template <class T>
struct Kernels {
  int64_t (*forward_workspace)(CellKind, int64_t B, int64_t H);
  int64_t (*backward_workspace)(CellKind, int64_t B, int64_t H);
  void (*forward)(CellKind, const Forward<T>&, const Runner&);
  void (*backward)(CellKind, const Backward<T>&, const Runner&);
  int64_t (*product_workspace)(const Gemm<T>&, int threads);
  void (*product)(const Gemm<T>&, const Runner&);
  // out[n] = sum of a[rows, n] over the rows, added in blocks so that the rounding error grows slowly.
  void (*column_sums)(const T* a, int64_t rows, int64_t n, T* out, const Runner&);
  // Packs of sigmoid and tanh over n values each: what the tests of their accuracy call.
  void (*activations)(const T* x, T* sigmoid, T* tanh, int64_t n);
  // Multiplies and adds in registers, `rounds` times on each thread, and returns how many floating-point operations
  // that was on all of them: the peak that benchmarks compare with.
  int64_t (*multiply_add)(int64_t rounds, const Runner&);
};

struct Isa {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

// The table of the best instruction set that the machine has, or of the one that FUSEDRNN_ISA names. Null, with a
// message, when that one is unknown or not there.
const Isa* selected_isa(const char** error);

template <class T>
const Kernels<T>& kernels_of(const Isa& isa);
template <>
inline const Kernels<float>& kernels_of<float>(const Isa& isa) {
  return *isa.f32;
}
template <>
inline const Kernels<double>& kernels_of<double>(const Isa& isa) {
  return *isa.f64;
}

}  // namespace cpu
}  // namespace fusedrnn
