// Included before ops_cuda.cpp: what it asks torch of a GPU is answered for the CPU, so that it runs on CPU tensors,
// and its operators go to a library of their own. Kernels run in the emulator, products in device.cpp.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>

extern "C" {
AOTITorchError fusedrnn_emulated_guard(int32_t index, CUDAGuardHandle* guard);
AOTITorchError fusedrnn_emulated_unguard(CUDAGuardHandle guard);
AOTITorchError fusedrnn_emulated_stream(int32_t index, void** stream);
AOTITorchError fusedrnn_emulated_blas(void** handle);
}

#define aoti_torch_create_cuda_guard fusedrnn_emulated_guard
#define aoti_torch_delete_cuda_guard fusedrnn_emulated_unguard
#define aoti_torch_get_current_cuda_stream fusedrnn_emulated_stream
#define torch_get_current_cuda_blas_handle fusedrnn_emulated_blas

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(fusedrnn_emulated, CPU, m, C10_UID)
