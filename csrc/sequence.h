// Where row b of step t lives. All tensors of a layer that have one row per step and batch entry (x, y, what is saved,
// the gradients) share one numbering of rows, so that a matrix product over all steps needs no copy in any layout.
#pragma once
#include <cstdint>

#include "inline.h"

namespace fusedrnn {

struct Sequence {
  int64_t T, B;
  bool batch_first;
  bool reverse;  // steps are run from T-1 to 0; rows keep their place

  FUSEDRNN_INLINE int64_t rows() const { return T * B; }
  // The step that is run as the k-th.
  FUSEDRNN_INLINE int64_t step(int64_t k) const { return reverse ? T - 1 - k : k; }
  FUSEDRNN_INLINE int64_t row(int64_t t, int64_t b) const { return batch_first ? b * T + t : t * B + b; }
  // Distance between the rows of neighbouring batch entries in one step.
  FUSEDRNN_INLINE int64_t batch_stride() const { return batch_first ? T : 1; }
};

}  // namespace fusedrnn
