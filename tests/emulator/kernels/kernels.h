// What bindings.cpp binds: functions that launch the kernels of the .cu files here.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

// cases.cu: small kernels of one signature, right and wrong.
const char* case_name(int number);  // null after the last
cudaError_t run_case(int number, float* a, float* b, unsigned* flags);

// device.cu. Kinds of products: 16-deep of halves and of bfloat16, 8-deep of halves and of TF32.
cudaError_t multiply_registers(int kind, const unsigned* a, const unsigned* b, float* d);
cudaError_t load_matrices(int number, bool transposed, const void* rows, unsigned* registers);
cudaError_t copy_bytes(int bytes, const unsigned char* from, unsigned char* to);
cudaError_t tf32_bits(const float* values, unsigned* bits);

// matmul.cu
cudaError_t matmul_half(const __half* a, const __half* b, float* c, int M, int N, int K, bool wrong_layout);
cudaError_t matmul_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int M, int N, int K);

// math.cu. y gets sigmoid, tanh, relu and where_positive(x, 2), n values each. Types: double, float, half, bfloat16.
cudaError_t functions_float(const float* x, float* y, int n);
cudaError_t functions_double(const double* x, double* y, int n);
cudaError_t cell_step(int cell, int type, const void* x, const void* r, void* states, void* grads, void* deltas, int n);
