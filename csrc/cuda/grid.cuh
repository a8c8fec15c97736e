// The whole sequence in one cooperative launch: what forward (grid_forward.cuh) and backward (grid_backward.cuh) share.
//
// Blocks, one a multiprocessor, form teams, each with rows of the batch of its own; teams have nothing to do with each
// other. Hidden units are spread over the blocks of a team. A block keeps the weights of its units on chip for the
// whole sequence, as far as they fit (grid_product.cuh), and its states (c and h, dc and the direct part of dh) in
// shared memory in Compute<T>. In each step it multiplies what all blocks of the team made in the step before (h, or
// delta) by its weights, in passes of 16 rows: warps share K and leave partial sums in shared memory, threads then take
// a (row, unit) each, add the partial sums, run the gate math, publish the new h or delta in the exchange, in T, and
// write what the caller wants.
//
// No barrier crosses blocks in the loop: a value is its own flag. A place of the exchange that is not written yet holds
// kUnwritten, all bits set, which no value is (publish() sees to that), and who needs it loads it until it is another
// (grid_product.cuh). So a step costs one store and one load through L2, where a barrier would cost three of each.
//
// There are kExchanges = 4 of them, taken in turn. The thread that publishes value e of datum k (h before step k) in
// exchange k % 4
//
//   at the end of step k - 1   publishes it; every block of the team reads it in step k
//   at the end of step k + 1   clears the place again: to get there its block has read data k + 1 of the same row, of
//                              all blocks, which they published after they had read datum k of that row
//   at the end of step k + 3   publishes datum k + 4 there, which others read in step k + 4
//
// Who reads in step k + 4 must find datum k + 4 or kUnwritten, not datum k. Between the clearing (end of step k + 1)
// and that read lies a chain of the same two threads: the publisher's fence in step k + 2, its datum k + 3 published at
// the end of that step, the reader's load of datum k + 3 in step k + 3, from the same place of another exchange, and
// the reader's fence in step k + 4. Both fences are the one that each thread has at the start of a step: it takes some
// 750 clocks on an H100 wherever it stands, and there they pass while the values of others are on their way anyway.
// With three exchanges no such publication would lie between.
//
// Backward counts k down: read there "k - 1" for "k + 1" and so on, deltas for h, w.at(k) as what step k publishes and
// w.at(k + 1) as what it reads. Nothing is read in the first step that is run. Where dh0 is wanted, deltas of step 0
// are read once more.
//
// What is there before step 0 (h0 or zeros, kUnwritten elsewhere, zeros in the padding beyond K) is ordered by a
// grid.sync(). Nothing else that a block writes is read by another.
//
// Deterministic: no atomics, and sums are added in the order that grid_product.cuh states.
#pragma once
#include <cooperative_groups.h>

#include "grid_product.cuh"
#include "masked_unit.cuh"

namespace fusedrnn {
namespace cuda {

// The workspace of a launch, cut up. It needs no initial value.
template <class T>
struct GridWorkspace {
  T* exchange;               // kExchanges of them
  int64_t pitch, exchanged;  // values of a row, and of one exchange
  uint4* streamed;

  GridWorkspace(void* p, const GridPlan& plan, int64_t B) : pitch(plan.chunks * (kChunkBytes / int64_t(sizeof(T)))) {
    exchange = static_cast<T*>(p);
    exchanged = B * pitch;
    streamed = reinterpret_cast<uint4*>(exchange + kExchanges * exchanged);
  }
  FUSEDRNN_DEVICE Exchanged<T> at(int64_t k) const { return {exchange + (k & (kExchanges - 1)) * exchanged, pitch}; }
};

// Shared memory. States of (row, unit): h and c forward; dc, and the part of dh that does not pass w_hh, backward.
struct GridShared {
  Sums sums;
  float *h, *c, *input_bias, *bias;
  uint4* weights;

  template <class Shape>
  static FUSEDRNN_INLINE GridShared carve(SharedCarver& carver, const GridPlan& plan) {
    const int columns = plan.groups * Shape::kTiles * kTileColumns;
    const size_t states = size_t(plan.rows) * size_t(plan.units);
    GridShared s;
    const int rows = pass_rows(plan.rows), pitch = int(sums_pitch(columns));
    s.sums = {carver.take<float>("sums", size_t(Shape::kWarps * rows * pitch)), rows, pitch};
    s.h = carver.take<float>("h", states);
    s.c = carver.take<float>("c", states);
    s.input_bias = carver.take<float>("input_bias", size_t(columns));
    s.bias = carver.take<float>("bias", size_t(columns));
    s.weights = carver.take<uint4>("weights", size_t(plan.shared_slots) * Shape::kWarps * Shape::kTiles * 32);
    return s;
  }
};

// The rows and units of this block, and the (row, unit) pairs of a thread in one pass, which are the same in every
// step.
struct GridPart {
  int64_t begin, end;  // rows
  int64_t first;       // unit
  int count;           // of units
  bool last;           // of its team

  FUSEDRNN_DEVICE GridPart(const GridPlan& plan, int64_t B, int64_t H) {
    const int team = int(blockIdx.x) / plan.team_blocks, member = int(blockIdx.x) - team * plan.team_blocks;
    begin = team * plan.rows, end = B - begin < plan.rows ? B : begin + plan.rows;
    first = int64_t(member) * plan.units, count = H - first < plan.units ? int(H - first) : plan.units;
    last = member == plan.team_blocks - 1;
  }

  FUSEDRNN_DEVICE int64_t states() const { return (end - begin) * count; }
  // Where state i of them is.
  FUSEDRNN_DEVICE int64_t row_of(int64_t i) const { return begin + i / count; }
  FUSEDRNN_DEVICE int64_t unit_of(int64_t i) const { return first + i % count; }

  // The i-th (row, unit) of a pass.
  struct Place {
    int in_pass, u;  // row of the pass, unit of the block
  };
  FUSEDRNN_DEVICE Place place(int i) const {
    const int r = i / count;
    return {r, i - r * count};
  }

  // The same of the rows from `row`.
  struct Pair : Place {
    int64_t b, unit, state;
  };
  FUSEDRNN_DEVICE Pair pair(const Place& p, int64_t row) const {
    return {p, row + p.in_pass, first + p.u, (row - begin + p.in_pass) * count + p.u};
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

// Partial sums of the pass that begins with `row`, of the rows before `end`.
template <class P, class Shape, class T>
FUSEDRNN_DEVICE void multiply_pass(const Weights<Shape>& weights, const Exchanged<T>& a, int64_t row, int64_t end,
                                   const GridPlan& plan, const Sums& sums) {
  const int rows = pass_rows(end - row);
  for (int r = 0; r < rows; r += P::kRows) weights.template multiply<P>(a, row + r, end, plan, sums, r);
}

// Zeros beyond K in all exchanges, where fragments of weights are zero too: by one block of a team.
template <class T>
FUSEDRNN_DEVICE void clear_padding(const GridWorkspace<T>& w, const GridPart& part, int64_t K) {
  const int64_t padding = w.pitch - K;
  if (!part.last) return;
  for (int64_t i = threadIdx.x; i < (part.end - part.begin) * padding; i += blockDim.x)
    for (int64_t k = 0; k < kExchanges; ++k)
      w.at(k).p[(part.begin + i / padding) * w.pitch + K + i % padding] = from_compute<T>(0.0f);
}

template <class Shape>
Launch grid_launch(const GridPlan& plan, cudaStream_t stream) {
  SharedCarver measure;
  GridShared::carve<Shape>(measure, plan);
  return {dim3(unsigned(plan.blocks())), dim3(Shape::kWarps * 32), measure.bytes(), true, stream};
}

}  // namespace cuda
}  // namespace fusedrnn
