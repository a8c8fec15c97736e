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

// How many rows each step has, and in which order steps are run. The rows of step t are those of the first rows(t) of B
// batch entries: all of them, or in a packed sequence no more than the step before has; there the rows of all steps lie
// one after the other, and offsets[t] are before those of step t.
struct Sequence {
  int64_t T, B;
  bool reverse;
  const int64_t* offsets;  // T + 1, or null

  FUSEDRNN_INLINE int64_t step(int64_t k) const { return step_of(k, T, reverse); }
  FUSEDRNN_INLINE int64_t before(int64_t t) const { return offsets ? offsets[t] : t * B; }
  FUSEDRNN_INLINE int64_t rows(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : B; }
  FUSEDRNN_INLINE int64_t total() const { return before(T); }
  // Rows of the step that is run as the k-th: none before the first and after the last.
  FUSEDRNN_INLINE int64_t rows_of_turn(int64_t k) const { return k >= 0 && k < T ? rows(step(k)) : 0; }
  // Entries that have any step.
  FUSEDRNN_INLINE int64_t entries() const { return T > 0 ? rows(0) : 0; }

  template <class P>
  FUSEDRNN_INLINE P* at(const Steps<P>& all, int64_t t) const {
    return offsets ? all.p + offsets[t] * all.row : all.at(t);
  }
};

}  // namespace fusedrnn
