// The whole sequence in one cooperative launch: what forward (grid_forward.cuh) and backward (grid_backward.cuh) share.
//
// Hidden units are spread over the blocks, one block a multiprocessor. A block keeps the weights of its units on chip
// for the whole sequence, as far as they fit (grid_product.cuh), and its states (c and h, dc and the direct part of dh)
// in shared memory in Compute<T>. In each step it multiplies what all blocks made in the step before (h, or delta) by
// its weights, in passes of 16 rows: warps share K and leave partial sums in shared memory, threads then take a (row,
// unit) each, add the partial sums, run the gate math, write what the caller wants, and publish the new h or delta in
// the exchange buffer, in T. A barrier of the grid ends the step.
//
// What crosses blocks, and what orders it. "Arrive" is __syncthreads, then add_release by thread 0; "pass" is
// load_acquire by thread 0 of all arrivals, then __syncthreads. A release covers the writes of the whole block, which
// __syncthreads ordered before it, and what is acquired holds for the whole block by the __syncthreads after it.
//
//   datum                          written                  read                       ordered by
//   exchange[0] before step 0:     each block, its units    product of step 0          grid.sync() before the first
//   step
//     h0 or zeros, zero padding
//   padding of exchange[1]         last block, at start     product of odd steps       the same grid.sync()
//   exchange[(k + 1) % 2]          gate math of step k      product of step k + 1      arrive after step k -> pass
//   before
//                                                                                        step k + 1
//   exchange[(k + 1) % 2] again    product of step k - 1    gate math of step k        arrive after step k - 1 -> pass
//     (a read before a write)        reads it                 overwrites it              before step k
//   the counter of arrivals        block 0 sets it to 0     all add to it              the same grid.sync()
//
// Backward counts k down: read there "step k + 1" for "step k - 1" and the other way round, "last" for "first", deltas
// for h, and w.at(k) as what step k writes and w.at(k + 1) as what it reads; before the last step nothing is published
// but the padding, since there is no product in it. Where dh0 is wanted, one more arrive and pass follow step 0.
//
// Two buffers are what makes one barrier a step enough: who writes a buffer has passed the barrier at which all arrived
// who had to read it. Nothing else that a block writes is read by another. Exchanged rows are read with ld.global.cg,
// which does not look into L1; an acquire would do.
//
// Deterministic: no atomic but the counter, and sums are added in the order that grid_product.cuh states.
#pragma once
#include <cooperative_groups.h>

#include "grid_product.cuh"
#include "unit.cuh"

namespace fusedrnn {
namespace cuda {

// A barrier of all blocks of a cooperative launch, in two halves. The counter only ever grows: there is no reset that
// could meet a late reader. It may wrap, since differences are compared.
class GridBarrier {
 public:
  explicit FUSEDRNN_DEVICE GridBarrier(unsigned* arrivals) : arrivals_(arrivals) {}

  // By one thread, before the grid.sync() that comes before all use.
  static FUSEDRNN_DEVICE void clear(unsigned* arrivals) { store_relaxed(arrivals, 0); }

  FUSEDRNN_DEVICE void arrive() {
    __syncthreads();
    expected_ += gridDim.x;
    if (threadIdx.x == 0) add_release(arrivals_, 1);
  }
  FUSEDRNN_DEVICE void pass() const {
    if (threadIdx.x == 0) spin_until([&] { return int(load_acquire(arrivals_) - expected_) >= 0; });
    __syncthreads();
  }

 private:
  unsigned* arrivals_;
  unsigned expected_ = 0;
};

// The workspace of a launch, cut up. It needs no initial value.
template <class T>
struct GridWorkspace {
  unsigned* arrivals;
  T* exchange;               // two of them
  int64_t pitch, exchanged;  // values of a row, and of one exchange
  uint4* streamed;

  GridWorkspace(void* p, const GridPlan& plan, int64_t B) : pitch(plan.chunks * (kChunkBytes / int64_t(sizeof(T)))) {
    auto* bytes = static_cast<unsigned char*>(p);
    arrivals = reinterpret_cast<unsigned*>(bytes);
    exchange = reinterpret_cast<T*>(bytes + 256);
    exchanged = B * pitch;
    streamed = reinterpret_cast<uint4*>(exchange + 2 * exchanged);
  }
  FUSEDRNN_DEVICE Exchanged<T> at(int64_t k) const { return {exchange + (k & 1) * exchanged, pitch}; }
};

// Shared memory. States of (row, unit): h and c forward; dc, and the part of dh that does not pass w_hh, backward.
struct GridShared {
  Sums sums;
  float *h, *c, *input_bias, *bias;
  uint4* weights;

  template <class Shape>
  static FUSEDRNN_INLINE GridShared carve(SharedCarver& carver, const GridPlan& plan, int64_t B) {
    const int columns = plan.groups * Shape::kTiles * kTileColumns;
    const size_t states = size_t(B) * size_t(plan.units);
    GridShared s;
    const int rows = pass_rows(B), pitch = int(sums_pitch(columns));
    s.sums = {carver.take<float>("sums", size_t(Shape::kWarps * rows * pitch)), rows, pitch};
    s.h = carver.take<float>("h", states);
    s.c = carver.take<float>("c", states);
    s.input_bias = carver.take<float>("input_bias", size_t(columns));
    s.bias = carver.take<float>("bias", size_t(columns));
    s.weights = carver.take<uint4>("weights", size_t(plan.shared_slots) * Shape::kWarps * Shape::kTiles * 32);
    return s;
  }
};

// The units of this block, and the (row, unit) pairs of a thread in one pass, which are the same in every step.
struct GridUnits {
  int64_t first;
  int count;

  FUSEDRNN_DEVICE GridUnits(const GridPlan& plan, int64_t H)
      : first(int64_t(blockIdx.x) * plan.units), count(H - first < plan.units ? int(H - first) : plan.units) {}

  // The i-th pair of the rows from `row`.
  struct Pair {
    int in_pass, u;  // row of the pass, unit of the block
    int64_t b, unit, state;
  };
  FUSEDRNN_DEVICE Pair pair(int i, int64_t row) const {
    const int r = i / count, u = i - r * count;
    return {r, u, row + r, first + u, (row + r) * count + u};
  }
};

// The sum of a column over warps, in ascending order.
template <class Shape>
FUSEDRNN_DEVICE float sum_of(const Sums& sums, int row, int column) {
  float v = 0;
#pragma unroll
  for (int warp = 0; warp < Shape::kWarps; ++warp) v += sums.at(warp, row)[column];
  return v;
}

// Partial sums of a pass.
template <class P, class Shape, class T>
FUSEDRNN_DEVICE void multiply_pass(const Weights<Shape>& weights, const Exchanged<T>& a, int64_t row, int64_t B,
                                   const GridPlan& plan, const Sums& sums) {
  const int rows = pass_rows(B - row);
  for (int r = 0; r < rows; r += P::kRows) weights.template multiply<P>(a, row + r, B, plan, sums, r);
}

// Zeros beyond K in both buffers, where fragments of weights are zero too: by one block.
template <class T>
FUSEDRNN_DEVICE void clear_padding(const GridWorkspace<T>& w, int64_t B, int64_t K) {
  const int64_t padding = w.pitch - K;
  for (int64_t i = threadIdx.x; i < B * padding; i += blockDim.x)
    for (int buffer = 0; buffer < 2; ++buffer)
      w.at(buffer).p[i / padding * w.pitch + K + i % padding] = from_compute<T>(0.0f);
}

template <class Shape>
Launch grid_launch(const GridPlan& plan, int64_t B, cudaStream_t stream) {
  SharedCarver measure;
  GridShared::carve<Shape>(measure, plan, B);
  return {dim3(unsigned(plan.blocks)), dim3(Shape::kWarps * 32), measure.bytes(), true, stream};
}

}  // namespace cuda
}  // namespace fusedrnn
