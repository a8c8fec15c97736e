// What recurrence_bindings.cpp binds: the kernels of csrc/cuda over a whole sequence.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

// Types: double, float, half, bfloat16. Tensors are dense, [T, B, .] or [B, T, .]. With rows_per_thread = 0 the kernels
// of single steps run, with a plain product between them, and `groups` is not looked at; else the block kernels.
// Memory of the steps: product [B, G H], and what is carried, 2 [B, H], of float or double.
cudaError_t run_forward(int cell, int type, int rows_per_thread, int groups, int64_t T, int64_t B, int64_t H,
                        bool reverse, bool batch_first, const void* x, const void* h0, const void* c0, const void* w_hh,
                        const void* b_ih, const void* b_hh, void* y, void* c, void* saved, void* h_n, void* c_n,
                        void* product, void* carried_h, void* carried_c);
cudaError_t run_backward(int cell, int type, int rows_per_thread, int groups, int64_t T, int64_t B, int64_t H,
                         bool reverse, bool batch_first, const void* saved, const void* y, const void* c,
                         const void* h0, const void* c0, const void* dy, const void* dh_n, const void* dc_n,
                         const void* w_hh, void* delta, void* dh0, void* dc0, void* product, void* carried_h,
                         void* carried_c);
