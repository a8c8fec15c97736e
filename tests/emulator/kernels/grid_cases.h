// What grid_bindings.cpp binds: a layer on the persistent kernel, in tensors of a layout that Python chose.
#pragma once
#include <cuda_runtime_api.h>

// Cells: LSTM, GRU, RNN with tanh, with relu. Shapes: of tests (few warps, little in registers), narrow, wide.
struct GridCase {
  int cell, shape, blocks, shared_bytes;
  int T, B, H;
  bool reverse, batch_first;
};
struct GridForwardTensors {
  const void* x;
  void *y, *c, *saved;
  const void *h0, *c0;
  void *h_n, *c_n;
  const void *w_hh, *b_ih, *b_hh;
  void* workspace;
};
struct GridBackwardTensors {
  const void *saved, *y, *c, *h0, *c0, *dy, *dh_n, *dc_n, *w_hh;
  void *delta, *dh0, *dc0, *workspace;
};

cudaError_t grid_float(const GridCase&, const GridForwardTensors*, const GridBackwardTensors*);
cudaError_t grid_tf32(const GridCase&, const GridForwardTensors*, const GridBackwardTensors*);
cudaError_t grid_half(const GridCase&, const GridForwardTensors*, const GridBackwardTensors*);
cudaError_t grid_bfloat16(const GridCase&, const GridForwardTensors*, const GridBackwardTensors*);
