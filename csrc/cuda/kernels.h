// The CUDA kernels as the rest of the library sees them: plain structs of pointers and sizes. No torch in here.
//
// T is how tensors are stored: double, float, __half or __nv_bfloat16. Half types are computed in float.
#pragma once
#include <cstdint>

#include "../sequence.h"

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

}  // namespace cuda
}  // namespace fusedrnn
