// The GPU that ops_cuda.cpp finds under the emulator: its limits, which a test sets, copies, and a cuBLAS that
// multiplies in double and rounds once. It also defines the operators, as csrc/ops_cpu.cpp does, with two more.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>

#include "csrc/cuda/blas.h"
#include "csrc/ops.h"
#include "emulator/control.h"
#include "redirect.h"

namespace {

struct {
  int64_t sm_count = 4, shared_bytes = 227 << 10, capability = 90;
  bool cooperative = true, tf32 = false;
} device;

constexpr int kMaxPitch = 256;  // small tests meet rows that are longer
int guards = 0, handle = 0;

}  // namespace

extern "C" {

// A guard that is not given back, or a stream or handle that is asked for without one, is a mistake in the glue.
AOTITorchError fusedrnn_emulated_guard(int32_t, CUDAGuardHandle* guard) {
  ++guards;
  *guard = reinterpret_cast<CUDAGuardHandle>(&guards);
  return 0;
}
AOTITorchError fusedrnn_emulated_unguard(CUDAGuardHandle guard) {
  return reinterpret_cast<int*>(guard) == &guards && --guards >= 0 ? 0 : 1;
}
AOTITorchError fusedrnn_emulated_stream(int32_t, void** stream) {
  *stream = nullptr;
  return guards == 1 ? 0 : 1;
}
AOTITorchError fusedrnn_emulated_blas(void** p) {
  *p = &handle;
  return guards == 1 ? 0 : 1;
}

cudaError_t cudaSetDevice(int) { return guards == 1 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = int(device.sm_count); return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(device.shared_bytes); return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = int(device.capability / 10); return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = int(device.capability % 10); return cudaSuccess;
    case cudaDevAttrMaxPitch: *value = kMaxPitch; return cudaSuccess;
    case cudaDevAttrCooperativeLaunch: *value = device.cooperative; return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t) {
  if (kind != cudaMemcpyDeviceToDevice || width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  if (to_pitch > kMaxPitch || from_pitch > kMaxPitch) return cudaErrorInvalidPitchValue;
  for (size_t i = 0; i < height; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  if (width > pitch || pitch > kMaxPitch) return cudaErrorInvalidPitchValue;
  for (size_t i = 0; i < height; ++i) std::memset(static_cast<char*>(p) + i * pitch, value, width);
  return cudaSuccess;
}

}  // extern "C"

namespace fusedrnn {
namespace cuda {
namespace {

double load(const Matrix& m, int64_t row, int64_t column) {
  const int64_t at = m.transposed ? column * m.ld + row : row * m.ld + column;
  switch (m.type) {
    case CUDA_R_64F: return static_cast<const double*>(m.p)[at];
    case CUDA_R_32F: return static_cast<const float*>(m.p)[at];
    case CUDA_R_16F: return __half2float(static_cast<const __half*>(m.p)[at]);
    default: return __bfloat162float(static_cast<const __nv_bfloat16*>(m.p)[at]);
  }
}
void store(const Matrix& m, int64_t row, int64_t column, double v) {
  void* p = const_cast<void*>(m.p);
  const int64_t at = row * m.ld + column;
  switch (m.type) {
    case CUDA_R_64F: static_cast<double*>(p)[at] = v; break;
    case CUDA_R_32F: static_cast<float*>(p)[at] = float(v); break;
    case CUDA_R_16F: static_cast<__half*>(p)[at] = __float2half_rn(float(v)); break;
    default: static_cast<__nv_bfloat16*>(p)[at] = __float2bfloat16_rn(float(v));
  }
}

void require(bool right, const char* what) {
  if (!right) throw std::runtime_error(std::string("the emulated cuBLAS refuses ") + what);
}

}  // namespace

// As strict as the real one.
void gemm(void* given, int64_t M, int64_t N, int64_t K, const Matrix& a, const Matrix& b, const Matrix& c, bool add) {
  require(given == &handle, "another handle");
  require(M > 0 && N > 0 && K > 0, "empty products");
  require(a.ld >= (a.transposed ? M : K) && b.ld >= (b.transposed ? K : N) && c.ld >= N, "rows that overlap");
  require(a.type == b.type && !c.transposed, "factors of two types");
  require(c.type == a.type || (c.type == CUDA_R_32F && a.type != CUDA_R_64F), "a result of this type");
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      double sum = add ? load(c, i, j) : 0;
      for (int64_t k = 0; k < K; ++k) sum += load(a, i, k) * load(b, k, j);
      store(c, i, j, sum);
    }
}

bool allows_tf32(void*) { return device.tf32; }

}  // namespace cuda

namespace {

void set_device(int64_t sm_count, int64_t shared_bytes, int64_t capability, bool cooperative, bool tf32) {
  device = {sm_count, shared_bytes, capability, cooperative, tf32};
}

// What the emulator has found since the last time.
std::string reports() {
  std::string text = guards == 0 ? "" : "a device guard was not given back\n";
  for (const auto& report : emulator::take_reports()) text += report.message + "\n";
  return text;
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY(fusedrnn_emulated, m) {
  FUSEDRNN_DEFINE_ALL(m);
  m.def("set_device(int sm_count, int shared_bytes, int capability, bool cooperative, bool tf32) -> ()");
  m.def("reports() -> str");
}

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(ns, k, m, C10_UID)
STABLE_TORCH_LIBRARY_IMPL(fusedrnn_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_device", TORCH_BOX(&fusedrnn::set_device));
  m.impl("reports", TORCH_BOX(&fusedrnn::reports));
}
