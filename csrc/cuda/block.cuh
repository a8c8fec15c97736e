// The whole sequence in one launch: a block takes a few batch rows through all steps and needs no other block.
//
// A thread has one hidden unit of Rows batch rows and keeps their states, sums and biases in registers; see BlockShape
// for how threads make a block. In shared memory, for the whole launch, is w_hh in T, and for two steps that take
// turns, so that one barrier a step is enough, what w_hh is multiplied with, in float: h, or backward the recurrent
// deltas.
//
// w_hh is cut along the sum into chunks of 16 bytes, [chunk][gate][unit][values]: the threads of a warp have
// neighbouring units and load neighbouring chunks, 128 bits each without a bank conflict, and all of them the same
// chunk of h, which is broadcast. A chunk of w_hh serves Rows rows: loads of shared memory bound this kernel, and more
// rows make fewer of them. Sums run over the units in order, in one thread: results are the same in every launch.
#pragma once
#include "masked_unit.cuh"

namespace fusedrnn {
namespace cuda {

// The values of 16 bytes.
template <class T>
constexpr int kChunk = 16 / int(sizeof(T));

FUSEDRNN_DEVICE void unpack(const uint4& bits, float (&v)[4]) {
  v[0] = __uint_as_float(bits.x), v[1] = __uint_as_float(bits.y);
  v[2] = __uint_as_float(bits.z), v[3] = __uint_as_float(bits.w);
}
template <class T>
FUSEDRNN_DEVICE float half_of(unsigned pair, int which) {
  const unsigned short bits = static_cast<unsigned short>(which ? pair >> 16 : pair & 0xffff);
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(bits));
  else
    return __uint_as_float(unsigned(bits) << 16);
}

template <class T>
FUSEDRNN_DEVICE void load_chunk(const T* p, float (&v)[kChunk<T>]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  if constexpr (std::is_same_v<T, float>) {
    unpack(bits, v);
  } else {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = half_of<T>(words[i / 2], i % 2);
  }
}

// Shared memory, and the place of this thread. Columns: of the product, per unit.
template <class T, bool IsBackward, int Gates, int Rows>
struct Block {
  static constexpr int kColumns = IsBackward ? 1 : Gates;
  int H, depth, padded;  // of the sum, and rounded up to chunks
  int unit, row;         // the first of this thread's rows, within the block
  T* weights;
  float* operand;

  FUSEDRNN_DEVICE Block(SharedCarver& carver, int64_t H)
      : H(int(H)),
        depth(int(block_depth(IsBackward, Gates, H))),
        padded(chunks(depth, sizeof(T)) * kChunk<T>),
        unit(int(threadIdx.x)),
        row(int(threadIdx.y) * Rows),
        weights(carver.take<T>("weights", size_t(block_weights(IsBackward, Gates, sizeof(T), H)))),
        operand(carver.take<float>("operand",
                                   size_t(block_operand(IsBackward, Gates, sizeof(T), H, Rows * int(blockDim.y))))) {}

  FUSEDRNN_DEVICE bool active() const { return unit < H; }
  FUSEDRNN_DEVICE float* operand_of(int64_t k, int r) const {
    return operand + (int(k & 1) * Rows * int(blockDim.y) + row + r) * padded;
  }

  // w_hh is read as it lies, and written to where the product wants it; what pads the sum is zero.
  FUSEDRNN_DEVICE void load(const T* w_hh) const {
    const int thread = int(threadIdx.y * blockDim.x + threadIdx.x), threads = int(blockDim.x * blockDim.y);
    for (int i = thread; i < kColumns * H * padded; i += threads) {
      // Backward, consecutive threads read along a row of w_hh, which is along the columns of the product.
      const int column = IsBackward ? i % H : i / padded, m = IsBackward ? i / H : i % padded;
      const int64_t from = IsBackward ? int64_t(m) * H + column : int64_t(column) * H + m;
      weights[(m / kChunk<T> * kColumns * H + column) * kChunk<T> + m % kChunk<T>] =
          m < depth ? w_hh[from] : from_compute<T>(0.0f);
    }
    for (int i = thread; i < 2 * Rows * int(blockDim.y) * padded; i += threads) operand[i] = 0;
  }

  // sums[r][c] of step k's operand.
  FUSEDRNN_DEVICE void multiply(int64_t k, float (&sums)[Rows][kColumns]) const {
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[r][c] = 0;
    const T* w = weights + unit * kChunk<T>;
    const float* from = operand_of(k, 0);
    for (int m = 0; m < padded; m += kChunk<T>, w += kColumns * H * kChunk<T>) {
      float part[kColumns][kChunk<T>];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) load_chunk(w + c * H * kChunk<T>, part[c]);
#pragma unroll
      for (int r = 0; r < Rows; ++r)
#pragma unroll
        for (int q = 0; q < kChunk<T>; q += 4) {
          float v[4];
          load_chunk(from + r * padded + m + q, v);
#pragma unroll
          for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) sums[r][c] += part[c][q + e] * v[e];
        }
    }
  }
};

template <class Cell, class T, int Rows, class A>
__global__ void __launch_bounds__(kBlockThreads, 1) block_forward_kernel(A a) {
  DYNAMIC_SHARED(carver);
  const Block<T, false, Cell::kGates, Rows> block(carver, a.H);
  const int64_t j = block.unit, b0 = int64_t(blockIdx.x) * Rows * blockDim.y + block.row;
  block.load(a.w_hh);
  __syncthreads();
  // Threads without a unit load none and store none, but meet the others.
  const int rows = !block.active() || b0 >= a.B ? 0 : a.B - b0 < Rows ? int(a.B - b0) : Rows;
  State<float> state[Rows];
  Biases<Cell, T> bias;
  if (rows > 0) bias = load_biases<Cell>(a, j);
#pragma unroll
  for (int r = 0; r < Rows; ++r)
    if (r < rows) {
      state[r] = initial_state<Cell>(a, b0 + r, j);
      block.operand_of(0, r)[j] = state[r].h;
    }
  __syncthreads();
  for (int64_t k = 0; k < a.steps; ++k) {
    const int64_t t = step_of(k, a.steps, a.reverse);
    Projection<Cell, T> x[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      if (r < rows) x[r] = load_projection<Cell>(a, t, b0 + r, j);
    float sums[Rows][Cell::kGates];
    if (rows > 0) block.multiply(k, sums);
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      if (r < rows) {
        forward_unit<Cell>(a, t, b0 + r, j, x[r], bias, sums[r], state[r]);
        block.operand_of(k + 1, r)[j] = state[r].h;
      }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r)
    if (r < rows) store_final_state<Cell>(a, b0 + r, j, state[r]);
}

template <class Cell, class T, int Rows, class A>
__global__ void __launch_bounds__(kBlockThreads, 1) block_backward_kernel(A a) {
  DYNAMIC_SHARED(carver);
  const Block<T, true, Cell::kGates, Rows> block(carver, a.H);
  const int64_t j = block.unit, b0 = int64_t(blockIdx.x) * Rows * blockDim.y + block.row;
  block.load(a.w_hh);  // the operand of the step after the last is zero
  __syncthreads();
  const int rows = !block.active() || b0 >= a.B ? 0 : a.B - b0 < Rows ? int(a.B - b0) : Rows;
  StateGrad<float> grad[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r)
    if (r < rows) grad[r] = final_gradient<Cell>(a, b0 + r, j);
  float sums[Rows][1];
  for (int64_t k = a.steps - 1; k >= 0; --k) {
    Kept<Cell, T> kept[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      if (r < rows) kept[r] = load_kept<Cell>(a, k, b0 + r, j);
    if (rows > 0) block.multiply(k + 1, sums);
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      if (r < rows) {
        float delta[Cell::kDeltas];
        backward_unit<Cell>(a, step_of(k, a.steps, a.reverse), b0 + r, j, kept[r], sums[r][0], grad[r], delta);
#pragma unroll
        for (int g = 0; g < Cell::kGates; ++g)
          block.operand_of(k, r)[g * block.H + j] = delta[Cell::kRecurrentDelta + g];
      }
    __syncthreads();
  }
  if (rows > 0) block.multiply(0, sums);
#pragma unroll
  for (int r = 0; r < Rows; ++r)
    if (r < rows) store_initial_gradient<Cell>(a, b0 + r, j, sums[r][0], grad[r]);
}

template <class Kernel, class A>
cudaError_t launch_block(Kernel kernel, const A& a, const BlockShape& shape, int64_t shared_bytes,
                         cudaStream_t stream) {
  if (a.B == 0 || a.H == 0) return cudaSuccess;
  Launch where{dim3(unsigned((a.B + shape.rows() - 1) / shape.rows())),
               dim3(unsigned(block_units(a.H)), unsigned(shape.groups)), size_t(shared_bytes)};
  where.stream = stream;
  return launch(where, kernel, a);
}

template <class Cell, class T, class A>
cudaError_t block_forward_cell(const A& a, const BlockShape& s, cudaStream_t stream) {
  const int64_t bytes = block_shared_bytes(false, Cell::kGates, sizeof(T), a.H, s.rows());
  if (s.rows_per_thread == 1) return launch_block(block_forward_kernel<Cell, T, 1, A>, a, s, bytes, stream);
  return launch_block(block_forward_kernel<Cell, T, kManyRows, A>, a, s, bytes, stream);
}
template <class Cell, class T, class A>
cudaError_t block_backward_cell(const A& a, const BlockShape& s, cudaStream_t stream) {
  const int64_t bytes = block_shared_bytes(true, Cell::kGates, sizeof(T), a.H, s.rows());
  if (s.rows_per_thread == 1) return launch_block(block_backward_kernel<Cell, T, 1, A>, a, s, bytes, stream);
  return launch_block(block_backward_kernel<Cell, T, kManyRows, A>, a, s, bytes, stream);
}

// A: Forward<T> or MaskedForward<T>; below the same of backward.
template <class T, class A>
cudaError_t block_forward(CellKind cell, const A& a, const BlockShape& shape, cudaStream_t stream) {
  cudaError_t (*const run[])(const A&, const BlockShape&, cudaStream_t) = {
      block_forward_cell<Lstm, T, A>, block_forward_cell<Gru, T, A>, block_forward_cell<RnnTanh, T, A>,
      block_forward_cell<RnnRelu, T, A>};
  return run[cell](a, shape, stream);
}
template <class T, class A>
cudaError_t block_backward(CellKind cell, const A& a, const BlockShape& shape, cudaStream_t stream) {
  cudaError_t (*const run[])(const A&, const BlockShape&, cudaStream_t) = {
      block_backward_cell<Lstm, T, A>, block_backward_cell<Gru, T, A>, block_backward_cell<RnnTanh, T, A>,
      block_backward_cell<RnnRelu, T, A>};
  return run[cell](a, shape, stream);
}

#define FUSEDRNN_BLOCK(T)                                                                                    \
  template cudaError_t block_forward<T>(CellKind, const Forward<T>&, const BlockShape&, cudaStream_t);       \
  template cudaError_t block_backward<T>(CellKind, const Backward<T>&, const BlockShape&, cudaStream_t);     \
  template cudaError_t block_forward<T>(CellKind, const MaskedForward<T>&, const BlockShape&, cudaStream_t); \
  template cudaError_t block_backward<T>(CellKind, const MaskedBackward<T>&, const BlockShape&, cudaStream_t);

}  // namespace cuda
}  // namespace fusedrnn
