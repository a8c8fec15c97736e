// Matrix products by cuBLAS, on torch's handle. Row-major. No torch in here.
#pragma once
#include <library_types.h>

#include <cstdint>

namespace fusedrnn {
namespace cuda {

// One factor or the result: rows ld values apart.
struct Matrix {
  const void* p;
  cudaDataType type;
  int64_t ld;
  bool transposed = false;  // as it lies; factors only
};

// c [M, N] = a [M, K] b [K, N], or += where it is added. Sums are in double when c is double, else in float; whether
// float factors may be rounded to TF32 is the handle's setting. Throws std::runtime_error.
void gemm(void* handle, int64_t M, int64_t N, int64_t K, const Matrix& a, const Matrix& b, const Matrix& c, bool add);

// Whether torch allows TF32, which it has told the handle.
bool allows_tf32(void* handle);

}  // namespace cuda
}  // namespace fusedrnn
