// How a block of the block kernels is made and what it takes, as numbers: the kernels lay their shared memory out by
// these, and select.h knows from them what fits.
#pragma once
#include <cstdint>

#include "../inline.h"

namespace fusedrnn {
namespace cuda {

// A block has `groups` groups of threads, a thread for each hidden unit (rounded up to warps), which serve
// `rows_per_thread` batch rows each.
struct BlockShape {
  int rows_per_thread, groups;

  FUSEDRNN_INLINE int rows() const { return rows_per_thread * groups; }
};

constexpr int kBlockThreads = 384;  // at most, which leaves each thread 168 registers
constexpr int kManyRows = 4;        // the rows a thread may have, besides 1

FUSEDRNN_INLINE int block_units(int64_t H) { return int((H + 31) / 32 * 32); }

// Values in 16 bytes, which are loaded at once; and `length` in units of that.
FUSEDRNN_INLINE int chunk_of(int type_bytes) { return 16 / type_bytes; }
FUSEDRNN_INLINE int chunks(int64_t length, int type_bytes) {
  return int((length + chunk_of(type_bytes) - 1) / chunk_of(type_bytes));
}

// What the product sums over: of forward the units, of backward the units of all gates.
FUSEDRNN_INLINE int64_t block_depth(bool backward, int gates, int64_t H) { return backward ? gates * H : H; }

// Values of T that hold w_hh, and floats that hold what it is multiplied with, of two steps.
FUSEDRNN_INLINE int64_t block_weights(bool backward, int gates, int type_bytes, int64_t H) {
  const int64_t columns = backward ? H : gates * H;
  return chunks(block_depth(backward, gates, H), type_bytes) * columns * chunk_of(type_bytes);
}
FUSEDRNN_INLINE int64_t block_operand(bool backward, int gates, int type_bytes, int64_t H, int rows) {
  return int64_t(2) * rows * chunks(block_depth(backward, gates, H), type_bytes) * chunk_of(type_bytes);
}

// Both are whole numbers of 16 bytes, so nothing is lost between them.
FUSEDRNN_INLINE int64_t block_shared_bytes(bool backward, int gates, int type_bytes, int64_t H, int rows) {
  return block_weights(backward, gates, type_bytes, H) * type_bytes +
         block_operand(backward, gates, type_bytes, H, rows) * int64_t(sizeof(float));
}

}  // namespace cuda
}  // namespace fusedrnn
