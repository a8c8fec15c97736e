// Where row b of step t lives. A tensor with one row per step and batch entry (x, y, what is saved, the gradients) is a
// pointer and two strides, so that time-major, batch-first and any other layout are the same to a kernel; directions
// differ in the order in which steps are run.
#pragma once
#include <cstdint>

#include "inline.h"

namespace fusedrnn {

// The row of step t and entry b is at p + t step + b row.
template <class P>
struct Steps {
  P* p;
  int64_t step, row;

  FUSEDRNN_INLINE P* at(int64_t t, int64_t b = 0) const { return p + t * step + b * row; }
  FUSEDRNN_INLINE explicit operator bool() const { return p != nullptr; }
};

// The step that is run as the k-th.
FUSEDRNN_INLINE int64_t step_of(int64_t k, int64_t steps, bool reverse) { return reverse ? steps - 1 - k : k; }

}  // namespace fusedrnn
