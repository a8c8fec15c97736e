// The CUDA kernels as the rest of the library sees them: plain structs of pointers and sizes. No torch in here.
//
// T is how tensors are stored: double, float, __half or __nv_bfloat16. Half types are computed in float.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "../cells/kind.h"
#include "../sequence.h"
#include "block_shape.h"
#include "grid_plan.h"

namespace fusedrnn {
namespace cuda {

// The time loop of one layer in one direction. Rows of x hold w_ih x without bias; states are [B, H].
template <class T>
struct Forward {
  int64_t steps, B, H;
  bool reverse;
  Steps<const T> x;      // G gates of H
  Steps<T> y, c, saved;  // H, H and kSaved of H; c and saved may be null
  const T *h0, *c0;      // or null for zeros
  T *h_n, *c_n;
  const T* w_hh;         // [G H, H]
  const T *b_ih, *b_hh;  // [G H], or null
};

// The time loop of backward, from the last step to the first.
template <class T>
struct Backward {
  int64_t steps, B, H;
  bool reverse;
  Steps<const T> saved, y, c;
  const T *h0, *c0;      // or null for zeros
  Steps<const T> dy;     // or null for zeros
  const T *dh_n, *dc_n;  // or null for zeros
  const T* w_hh;
  Steps<T> delta;  // kDeltas of H: gradients of the pre-activations
  T *dh0, *dc0;    // or null where they are not wanted
};

// What the kernels of single steps carry from one to the next, unrounded: each [B, H], and null where the cell has no
// use for it. Forward: h of cells that keep a direct path, c of those with a cell state. Backward: of the same cells,
// the part of dh that does not pass w_hh, and dc. The first step that is run writes them without reading.
template <class T>
struct Carried {
  using F = std::conditional_t<std::is_same_v<T, double>, double, float>;
  F *h, *c;
};

// One step, the k-th that forward runs, after the product of the state before it and w_hh: [B, G H], or null for zeros.
// Writes the final state with the last step; of no steps, k = 0 does nothing else.
template <class T>
cudaError_t step_forward(CellKind cell, const Forward<T>& a, int64_t k, const typename Carried<T>::F* product,
                         const Carried<T>& carried, cudaStream_t stream);
// The same step backward: the product of the recurrent deltas of the step run after it and w_hh is [B, H], or null for
// the last. k = -1, after the first step or instead of one, writes the gradients of the initial states.
template <class T>
cudaError_t step_backward(CellKind cell, const Backward<T>& a, int64_t k, const typename Carried<T>::F* product,
                          const Carried<T>& carried, cudaStream_t stream);

// Gradients of the biases, either of which may be null: the sums of the deltas, `rows` dense rows, over the rows. The
// workspace is bias_parts(rows) times the values of a row.
constexpr int64_t bias_parts(int64_t rows) { return rows < 512 ? 1 : rows < 64 * 256 ? rows / 256 : 64; }
template <class T>
cudaError_t bias_gradients(CellKind cell, const T* delta, int64_t rows, int64_t H, typename Carried<T>::F* parts,
                           T* db_ih, T* db_hh, cudaStream_t stream);

// The whole sequence in one launch, of a shape that fits (block_shape.h). T is float, __half or __nv_bfloat16.
template <class T>
cudaError_t block_forward(CellKind cell, const Forward<T>& a, const BlockShape& shape, cudaStream_t stream);
template <class T>
cudaError_t block_backward(CellKind cell, const Backward<T>& a, const BlockShape& shape, cudaStream_t stream);

// The whole sequence in one cooperative launch, by a plan that fits (grid_plan.h). T as above; tf32 matters to float
// alone. The workspace has plan.workspace_bytes of any content, at an address that 256 divides.
template <class T>
cudaError_t grid_forward(CellKind cell, const Forward<T>& a, const GridPlan& plan, bool tf32, void* workspace,
                         cudaStream_t stream);
template <class T>
cudaError_t grid_backward(CellKind cell, const Backward<T>& a, const GridPlan& plan, bool tf32, void* workspace,
                          cudaStream_t stream);
// Whether a multiprocessor of the current device can hold a block of that plan, whose shared memory it may ask for.
template <class T>
cudaError_t grid_resident(CellKind cell, bool backward, const GridPlan& plan, bool tf32, bool* resident);

}  // namespace cuda
}  // namespace fusedrnn
