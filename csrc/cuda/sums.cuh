// Gradients of the biases: sums of the deltas over all rows, in an order that the number of rows alone decides.
//
// First blocks of 32 columns and kSumLanes rows walk over their part of the rows, a warp a row, so that loads are
// coalesced, and add their lanes up in shared memory; then a thread a column adds the parts up.
#pragma once
#include "cells.cuh"
#include "kernels.h"

namespace fusedrnn {
namespace cuda {

constexpr int kSumColumns = 32, kSumLanes = 8, kSumThreads = 128;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    sum_rows_kernel(const T* delta, int64_t rows, int64_t columns, int64_t rows_of_part, Compute<T>* parts) {
  using F = Compute<T>;
  SHARED_ARRAY(F, lanes, [kSumLanes][kSumColumns]);
  const int64_t column = int64_t(blockIdx.x) * kSumColumns + threadIdx.x, first = blockIdx.y * rows_of_part;
  const int64_t last = first + rows_of_part < rows ? first + rows_of_part : rows;
  F sum = 0;
  if (column < columns)
    for (int64_t row = first + threadIdx.y; row < last; row += kSumLanes)
      sum += to_compute(delta[row * columns + column]);
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int lane = 1; lane < kSumLanes; ++lane) sum += lanes[lane][threadIdx.x];
  parts[blockIdx.y * columns + column] = sum;
}

template <class Cell, class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const Compute<T>* parts, int64_t count, int64_t H, T* db_ih, T* db_hh) {
  const int64_t columns = Cell::kDeltas * H, column = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (column >= columns) return;
  Compute<T> sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += parts[part * columns + column];
  const int slot = int(column / H);
  const int64_t unit = column % H;
  if (db_ih && slot < Cell::kGates) db_ih[input_gate<Cell>(slot) * H + unit] = from_compute<T>(sum);
  if (db_hh && slot >= Cell::kRecurrentDelta) db_hh[(slot - Cell::kRecurrentDelta) * H + unit] = from_compute<T>(sum);
}

template <class T>
cudaError_t bias_gradients(CellKind cell, const T* delta, int64_t rows, int64_t H, typename Carried<T>::F* parts,
                           T* db_ih, T* db_hh, cudaStream_t stream) {
  static constexpr int kDeltas[] = {Lstm::kDeltas, Gru::kDeltas, RnnTanh::kDeltas, RnnRelu::kDeltas};
  const int64_t columns = kDeltas[cell] * H, count = bias_parts(rows);
  if (columns == 0) return cudaSuccess;
  Launch where{dim3(unsigned((columns + kSumColumns - 1) / kSumColumns), unsigned(count)),
               dim3(kSumColumns, kSumLanes)};
  where.stream = stream;
  if (rows > 0) {
    const int64_t rows_of_part = (rows + count - 1) / count;
    const cudaError_t error = launch(where, sum_rows_kernel<T>, delta, rows, columns, rows_of_part, parts);
    if (error != cudaSuccess) return error;
  }
  void (*const kernels[])(const Compute<T>*, int64_t, int64_t, T*, T*) = {
      sum_parts_kernel<Lstm, T>, sum_parts_kernel<Gru, T>, sum_parts_kernel<RnnTanh, T>, sum_parts_kernel<RnnRelu, T>};
  where.grid = dim3(unsigned((columns + kSumThreads - 1) / kSumThreads)), where.block = dim3(kSumThreads);
  return launch(where, kernels[cell], static_cast<const Compute<T>*>(parts), rows > 0 ? count : int64_t(0), H, db_ih,
                db_hh);
}

#define FUSEDRNN_SUMS(T) \
  template cudaError_t bias_gradients(CellKind, const T*, int64_t, int64_t, Carried<T>::F*, T*, T*, cudaStream_t);

}  // namespace cuda
}  // namespace fusedrnn
