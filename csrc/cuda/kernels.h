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

// What a mask says of a row in a step.
using RowFlags = unsigned short;
constexpr RowFlags kZeroed = 1;    // the states are zeroed before the step, and no gradient passes
constexpr RowFlags kDetached = 2;  // no gradient passes from the step to the one run before it
constexpr RowFlags kIdle = 4;      // the row has no such step: its states stay what they are. No other flag with it

// Where a sequence is not whole: for every row of every step, and where the rows are if it is packed.
struct Masks {
  const RowFlags* flags;   // [T, B]
  const int64_t* offsets;  // null unless packed: T + 1, the rows before each step. Then row b of step t is what Steps
                           // have at step offsets[t] + b, row 0, and there is none for rows that are idle

  struct Place {
    int64_t t, b;
  };
  FUSEDRNN_INLINE Place place(int64_t t, int64_t b) const { return offsets ? Place{offsets[t] + b, 0} : Place{t, b}; }
};

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

// The same with masks, by kernels of its own. y, c and saved of idle rows are zeros, unless packed.
template <class T>
struct MaskedForward : Forward<T> {
  Masks masks;
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

// The same with masks or a gradient of c of every step. Deltas of idle rows are zeros, unless packed.
template <class T>
struct MaskedBackward : Backward<T> {
  Masks masks;
  Steps<const T> dc;  // or null for zeros
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

// The same with masks: carried.h is there for every cell. Forward, k = -1 comes first and has no product; each launch
// but the last leaves in `operand`, [B, H], the h that the next product multiplies, of which it needs rows that are not
// idle. Backward, products of rows that were idle in the step run after are not read.
template <class T>
cudaError_t step_forward(CellKind cell, const MaskedForward<T>& a, int64_t k, const typename Carried<T>::F* product,
                         const Carried<T>& carried, T* operand, cudaStream_t stream);
template <class T>
cudaError_t step_backward(CellKind cell, const MaskedBackward<T>& a, int64_t k, const typename Carried<T>::F* product,
                          const Carried<T>& carried, cudaStream_t stream);

// What masks are made of. A length that is not from 0 to T is an error of the device.
struct MaskSources {
  int64_t T, B;
  Steps<const unsigned char> resets;  // or null; as Masks has it if packed
  const int64_t* lengths;             // [B], or null
  const int64_t* offsets;             // of the device, or null
  int64_t detach_every;               // or 0
};
cudaError_t make_flags(const MaskSources& a, RowFlags* flags, cudaStream_t stream);
// Of the host, in a way that a CUDA graph can repeat.
cudaError_t copy_offsets(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream);

// Copies rows of so many values: those that are idle become zeros, or if packed have no place. Of the same step; or of
// the step run before, which is the initial state, or null for zeros, before the first step that a row runs, and zeros
// where states are zeroed. V has the size of a value: unsigned short, unsigned or unsigned long long.
template <class V>
struct MaskedCopy {
  int64_t T, B, columns;
  bool reverse;
  Masks masks;
  Steps<const V> from;
  Steps<V> to;
  bool before;
  const V* initial;  // [B, columns]
};
template <class V>
cudaError_t masked_copy(const MaskedCopy<V>& a, cudaStream_t stream);

// Gradients of the biases, either of which may be null: the sums of the deltas, `rows` dense rows, over the rows. The
// workspace is bias_parts(rows) times the values of a row.
constexpr int64_t bias_parts(int64_t rows) { return rows < 512 ? 1 : rows < 64 * 256 ? rows / 256 : 64; }
template <class T>
cudaError_t bias_gradients(CellKind cell, const T* delta, int64_t rows, int64_t H, typename Carried<T>::F* parts,
                           T* db_ih, T* db_hh, cudaStream_t stream);

// The whole sequence in one launch, of a shape that fits (block_shape.h). T is float, __half or __nv_bfloat16.
// A is Forward<T> or MaskedForward<T>, of backward Backward<T> or MaskedBackward<T>.
template <class T, class A>
cudaError_t block_forward(CellKind cell, const A& a, const BlockShape& shape, cudaStream_t stream);
template <class T, class A>
cudaError_t block_backward(CellKind cell, const A& a, const BlockShape& shape, cudaStream_t stream);

// The whole sequence in one cooperative launch, by a plan that fits (grid_plan.h). T as above; tf32 matters to float
// alone. The workspace has plan.workspace_bytes of any content, at an address that 256 divides.
template <class T, class A>
cudaError_t grid_forward(CellKind cell, const A& a, const GridPlan& plan, bool tf32, void* workspace,
                         cudaStream_t stream);
template <class T, class A>
cudaError_t grid_backward(CellKind cell, const A& a, const GridPlan& plan, bool tf32, void* workspace,
                          cudaStream_t stream);
// Whether a multiprocessor of the current device can hold a block of that plan, whose shared memory it may ask for.
template <class T>
cudaError_t grid_resident(CellKind cell, bool backward, bool masked, const GridPlan& plan, bool tf32, bool* resident);

}  // namespace cuda
}  // namespace fusedrnn
