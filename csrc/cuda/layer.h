// One layer in one direction over a whole sequence, on device pointers: projection, time loop, gradients. Host code; no
// torch in here.
#pragma once
#include "kernels.h"
#include "select.h"

namespace fusedrnn {
namespace cuda {

// What a layer runs on. All work is queued on the stream, and nothing waits for it.
struct Device {
  Limits limits;
  int64_t max_pitch;      // bytes from row to row that copies of two dimensions take
  const char* algorithm;  // the one that must be used, or null for the best
  void* blas;             // torch's cuBLAS handle, on the same stream
  cudaStream_t stream;
  void* (*allocate)(void* owner, size_t bytes);  // device memory that lives as long as the call
  void* owner;

  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(allocate(owner, size_t(count) * sizeof(T)));
  }
};

// Tensors with one row per step and batch entry are dense, in the layout of x; saved and c have time first. In a packed
// sequence the rows of all steps lie one after the other.
template <class T>
struct Layer {
  CellKind cell;
  int64_t steps, B, I, H;
  bool batch_first, reverse;
  const T* x;
  int64_t ldx;           // from row to row of x
  const T *h0, *c0;      // [B, H], or null for zeros
  const T *w_ih, *w_hh;  // [G H, I], [G H, H]
  const T *b_ih, *b_hh;  // [G H], or null
  // Each of these may be null. offsets is of the host: T + 1 values of a packed sequence, the rows before each step.
  const int64_t *offsets, *lengths;   // lengths [B]
  Steps<const unsigned char> resets;  // of packed rows: row n is at step n
};

template <class T>
struct LayerForward : Layer<T> {
  T *y, *saved, *c;  // saved and c may be null
  T *h_n, *c_n;
};

// Results that are null are not computed.
template <class T>
struct LayerBackward : Layer<T> {
  const T *y, *saved, *c;  // saved may be null: then the gates are computed again
  Steps<const T> dy, dc;   // or null; of packed rows: row n is at step n
  const T *dh_n, *dc_n;    // or null
  T *dx, *dh0, *dc0, *dw_ih, *dw_hh, *db_ih, *db_hh;
  int64_t detach_every;  // or 0
};

// Throw std::runtime_error with what failed, and for which shape.
template <class T>
void run_layer(const LayerForward<T>& a, const Device& device);
template <class T>
void run_layer(const LayerBackward<T>& a, const Device& device);

// The tokens of padded entries, zeros for steps after their ends: what stands there need not be a row of the table.
void tokens_that_count(const MaskSources& lengths, const Steps<const int64_t>& tokens, int64_t* to,
                       const Device& device);

}  // namespace cuda
}  // namespace fusedrnn
