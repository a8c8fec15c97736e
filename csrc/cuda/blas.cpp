// cuBLAS is looked up in the process, where torch has loaded it: nothing to link with, and one build serves every
// release of it. What is declared here has been the same since CUDA 11.
#include "blas.h"

#include <dlfcn.h>

#include <climits>
#include <stdexcept>
#include <string>

namespace fusedrnn {
namespace cuda {
namespace {

enum Operation { kAsItIs = 0, kTransposed = 1 };  // cublasOperation_t
enum Compute { kFloat = 68, kDouble = 70 };       // cublasComputeType_t: CUBLAS_COMPUTE_32F, _64F
constexpr int kDefaultAlgorithm = -1;             // CUBLAS_GEMM_DEFAULT
constexpr int kTf32 = 3;                          // cublasMath_t: CUBLAS_TF32_TENSOR_OP_MATH
constexpr int kFlags = 16;                        // of which are flags that are added to it

struct Cublas {
  int (*gemm)(void* handle, int a_operation, int b_operation, int m, int n, int k, const void* alpha, const void* a,
              cudaDataType a_type, int lda, const void* b, cudaDataType b_type, int ldb, const void* beta, void* c,
              cudaDataType c_type, int ldc, int compute, int algorithm);
  int (*math_mode)(void* handle, int* mode);
};

void* function(const char* name) {
  if (void* p = dlsym(RTLD_DEFAULT, name)) return p;
  for (const char* library : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"})
    if (void* loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD))
      if (void* p = dlsym(loaded, name)) return p;
  throw std::runtime_error(std::string("fusedrnn: torch has loaded no cuBLAS with ") + name);
}

const Cublas& cublas() {
  static const Cublas c{reinterpret_cast<decltype(Cublas::gemm)>(function("cublasGemmEx")),
                        reinterpret_cast<decltype(Cublas::math_mode)>(function("cublasGetMathMode"))};
  return c;
}

int fits(int64_t n) {
  if (n > INT_MAX) throw std::runtime_error("fusedrnn: a matrix product of more than 2^31 rows or columns");
  return int(n);
}

}  // namespace

void gemm(void* handle, int64_t M, int64_t N, int64_t K, const Matrix& a, const Matrix& b, const Matrix& c, bool add) {
  const bool wide = c.type == CUDA_R_64F;
  const double one = 1, zero = 0;
  const float one_f = 1, zero_f = 0;
  const void* alpha = wide ? static_cast<const void*>(&one) : &one_f;
  const void* none = wide ? static_cast<const void*>(&zero) : &zero_f;
  // cuBLAS counts columns first: what is computed is the transpose, from the transposed factors in the other order.
  const int status =
      cublas().gemm(handle, b.transposed ? kTransposed : kAsItIs, a.transposed ? kTransposed : kAsItIs, fits(N),
                    fits(M), fits(K), alpha, b.p, b.type, fits(b.ld), a.p, a.type, fits(a.ld), add ? alpha : none,
                    const_cast<void*>(c.p), c.type, fits(c.ld), wide ? kDouble : kFloat, kDefaultAlgorithm);
  if (status != 0)
    throw std::runtime_error("fusedrnn: cublasGemmEx failed with status " + std::to_string(status) + " for M " +
                             std::to_string(M) + ", N " + std::to_string(N) + ", K " + std::to_string(K));
}

bool allows_tf32(void* handle) {
  int mode = 0;
  return cublas().math_mode(handle, &mode) == 0 && mode % kFlags == kTf32;
}

}  // namespace cuda
}  // namespace fusedrnn
