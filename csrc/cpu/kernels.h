// The CPU kernels as the rest of the library sees them: plain structs of pointers and sizes, and one table of functions
// per instruction set. No torch in here, and nothing but C types, so that every instruction set shares the
// declarations.
//
// Kernels compute in T, float or double. Tensors of the user may be stored in another type, which is converted where it
// is packed or copied.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../cells/kind.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cpu {

enum Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(Type type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }
template <class T>
constexpr Type kTypeOf = sizeof(T) == 4 ? kFloat32 : kFloat64;

// Somebody's threads. run() calls body(context, begin, end) on pieces that make up [0, n), on as many threads as it
// likes, even one after the other.
struct Runner {
  typedef void (*Body)(void* context, int64_t begin, int64_t end);
  void (*run)(int64_t n, Body body, void* context);
  int threads;
};

// Steps stored in a type that is known at run time. Strides are in elements; those of a packed sequence are B rows and
// one. Row i of a sequence, counted through its steps, is the user's row index[i] where they are in another order.
struct Stored {
  void* p;
  Type type;
  int64_t step, row;
  const int64_t* index = nullptr;

  template <class P>
  FUSEDRNN_INLINE Steps<P> as() const {
    return {static_cast<P*>(p), step, row};
  }
  template <class P>
  FUSEDRNN_INLINE P* row_at(int64_t i, int64_t B) const {
    const int64_t j = index ? index[i] : i;
    if (step == B * row) return static_cast<P*>(p) + j * row;  // a division takes as long as copying a short row
    return as<P>().at(j / B, j % B);
  }
};

// A weight matrix in PyTorch's layout: row g N + n, column k, of G gates. One of the strides is 1.
struct Factor {
  const void* p;
  Type type;
  int64_t G, N, K, n_stride, k_stride;
};

// One layer in one direction, or some steps of it. Rows of x hold w_ih x without bias.
template <class T>
struct Forward {
  Sequence seq;
  int64_t H;
  int64_t first, last;          // the steps of this call, in the order in which they are run
  Steps<const T> x;             // or a table of which tokens pick the rows
  Steps<const int64_t> tokens;  // or null
  Steps<T> saved;               // what backward needs, or null; may be x itself
  Steps<T> y;
  Steps<T> c;                   // or null
  Steps<const uint8_t> resets;  // where not 0, the states are zeroed before the step; or null
  const T *h0, *c0;             // [B, H], or null for zeros
  T *h_n, *c_n;                 // [B, H], written by the calls that run the last step of an entry
  const T* weights;             // packed w_hh, or null for few rows: then w_hh is read where it is
  Factor w_hh;                  // G gates, K = H
  const T *b_ih, *b_hh;         // packed
  T* states;                    // forward_states() values that live from call to call, aligned to 64 bytes
};

// w_ih x for the same steps, rows and units as each thread works on in the time loop.
template <class T>
struct Projection {
  int64_t t0, t1, B, I, H;
  Steps<const T> x;
  const T* weights;  // packed w_ih of all gates
  Steps<T> to;
};

// What backward needs of steps t0 to t1, computed again from the states that the steps began with.
template <class T>
struct Recompute {
  int64_t rows, H;
  T* x;  // rows ldx apart: in w_ih x without bias, out what forward saves
  int64_t ldx;
  const T *h, *c;  // the states before, rows ldh apart
  int64_t ldh;
  const T *weights, *b_ih, *b_hh;  // packed
};

// The states that steps k0 to k1, in the order of running, began with.
template <class T>
struct StatesBefore {
  Sequence seq;
  int64_t k0, k1, N;
  Stored all, start;  // after each step; before the first, B rows, or null for zeros
  Steps<const uint8_t> resets;
  Steps<T> to;
};

template <class T>
struct Backward {
  Sequence seq;
  int64_t H;
  int64_t first, last;  // the steps of this call, which are run from last - 1 down to first
  Steps<const T> saved, y, c, h_before, c_before;
  Steps<const T> dy, dc;        // gradients of y and c, or null for zero
  Steps<const uint8_t> resets;  // or null: no gradient passes them
  int64_t detach_every;         // nor the beginning of each step that this divides, where not 0
  const T *dh_n, *dc_n;         // of the last states, or null; [B, H]
  const T* weights;             // packed w_hh, or null for few rows
  Factor w_hh;                  // one gate, N = H, K = G H
  Steps<T> delta;               // kDeltas [H] each: gradients of the pre-activations; also holds those of step `last`
  T *dh0, *dc0;                 // [B, H], written by the calls that run the first step of an entry, or null
  T* states;                    // backward_states() values that live from call to call
};

// c[M, N] = a b.
template <class T>
struct Gemm {
  int64_t M, N, K;
  const T* a;
  int64_t lda;
  const T* b;  // packed, one gate
  T* c;
  int64_t ldc;
};

// Some steps of a tensor, as rows: B of each step.
struct Piece {
  Stored rows;
  int64_t t0, t1;
};

// The gradient of w_ih or w_hh: row gate[slot] H + unit of `out` is the sum over the rows of delta times features.
template <class T>
struct WeightGradient {
  Piece features;  // of N values; their rows belong to those of the deltas
  int64_t N;
  const int* gate;  // of each slot of the deltas, or -1 where it takes no part
  T* out;           // or null
};

template <class T>
struct WeightGradients {
  int64_t K, B, H, slots;
  const T* d;  // deltas: K rows of `slots` times H
  int64_t ldd;
  WeightGradient<T> of[2];
  T* sums;     // of the deltas over the rows, or null
  bool add;    // to what is in the results
  T* scratch;  // gradient_scratch() values, aligned to 64 bytes
};

template <class T>
struct Kernels {
  // Values of a packed factor of G gates, N units and K columns.
  int64_t (*packed_size)(int64_t G, int64_t N, int64_t K);
  void (*pack)(const Factor&, T* packed, const Runner&);
  // Rows k... of a factor of K rows and N columns.
  void (*pack_rows_at)(const Piece&, int64_t B, int64_t N, int64_t K, int64_t k, T* packed, const Runner&);
  void (*pack_bias)(const void* bias, Type, int64_t G, int64_t H, T* packed);
  // Rows r0 to r1 of N values, from one layout and type to another.
  void (*copy)(const Stored& from, const Stored& to, int64_t r0, int64_t r1, int64_t B, int64_t N, const Runner&);
  void (*states_before)(const StatesBefore<T>&, const Runner&);
  int64_t (*forward_states)(CellKind, int64_t B, int64_t H);
  int64_t (*backward_states)(CellKind, int64_t B, int64_t H);
  void (*project)(CellKind, const Projection<T>&, const Runner&);
  void (*forward)(CellKind, const Forward<T>&, const Runner&);
  void (*recompute)(CellKind, const Recompute<T>&, const Runner&);
  void (*backward)(CellKind, const Backward<T>&, const Runner&);
  void (*product)(const Gemm<T>&, const Runner&);
  int64_t (*gradient_scratch)(int64_t K, int64_t N0, int64_t N1, int threads);
  void (*weight_gradients)(const WeightGradients<T>&, const Runner&);
  // c[M, G N] = a[M, K] b^T for few rows and a factor that is read where it is (k_stride 1).
  void (*few_products)(const T* a, int64_t M, const Factor& b, T* c, int64_t ldc, const Runner&);
  // out[tokens[i]] += the first n values of rows[i], for rows r0 to r1 in their order: the same for any number of
  // threads.
  void (*add_by_token)(const Steps<const T>& rows, const Steps<const int64_t>& tokens, int64_t r0, int64_t r1,
                       int64_t B, int64_t n, T* out, const Runner&);
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
