// What recurrence_bindings.cpp binds: the kernels of csrc/cuda over a whole sequence.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/cuda/kernels.h"

// Types: as ValueType. Tensors are dense, [T, B, .] or [B, T, .]. Masks are flags [T, B], or null, and offsets of a
// packed sequence, whose tensors are [N, .], or null. Kernels and what p, q, r, s are to them:
//   step   nothing; a plain product is between its launches. product [B, G H] or [B, H], carried 2 [B, H], in float or
//          double, are its memory, and with masks operand [B, H]
//   block  rows per thread, groups
//   grid   shape (grid_tested.h), blocks at most, shared bytes of a block at most, teams. workspace: as the plan says
enum { kStepKernel, kBlockKernel, kGridKernel };

cudaError_t run_forward(int cell, int type, int kernel, int p, int q, int r, int s, int64_t T, int64_t B, int64_t H,
                        bool reverse, bool batch_first, const void* x, const void* h0, const void* c0, const void* w_hh,
                        const void* b_ih, const void* b_hh, const void* flags, const void* offsets, void* y, void* c,
                        void* saved, void* h_n, void* c_n, void* product, void* carried_h, void* carried_c,
                        void* workspace, void* operand);
cudaError_t run_backward(int cell, int type, int kernel, int p, int q, int r, int s, int64_t T, int64_t B, int64_t H,
                         bool reverse, bool batch_first, const void* saved, const void* y, const void* c,
                         const void* h0, const void* c0, const void* dy, const void* dh_n, const void* dc_n,
                         const void* dc, const void* w_hh, const void* flags, const void* offsets, void* delta,
                         void* dh0, void* dc0, void* product, void* carried_h, void* carried_c, void* workspace);

// Gradients of the biases: rows of all slots of the deltas. parts: bias_parts(rows) rows of float or double.
cudaError_t run_bias_gradients(int cell, int type, int64_t rows, int64_t H, const void* delta, void* parts, void* db_ih,
                               void* db_hh);

// What grid_resident says of a plan: 1 or 0, or -1 for an error.
int is_resident(int cell, int type, bool backward, bool masked, const fusedrnn::cuda::GridPlan& plan);
