// The persistent kernels of one type, every cell and shape: what kernels.h declares, chosen at run time.
#pragma once
#include "grid_backward.cuh"
#include "grid_forward.cuh"

namespace fusedrnn {
namespace cuda {

// A struct, so that a file can say in one line that all of a type is compiled there, or elsewhere.
template <class T, bool Tf32>
struct GridKernels {
  static cudaError_t forward(CellKind cell, const Forward<T>& a, const GridPlan& plan, void* workspace,
                             cudaStream_t stream);
  static cudaError_t backward(CellKind cell, const Backward<T>& a, const GridPlan& plan, void* workspace,
                              cudaStream_t stream);
  static cudaError_t resident(CellKind cell, bool backward, const GridPlan& plan, bool* resident);
};

template <class Cell, class F>
cudaError_t with_shape(const GridPlan& plan, const F& f) {
  switch (plan.kind) {
    case GridKind::kNarrow: return f(Cell(), GridNarrow());
    case GridKind::kWide: return f(Cell(), GridWide());
    case GridKind::kBroad: return f(Cell(), GridBroad());
    default: return cudaErrorInvalidValue;
  }
}
// f(Cell(), Shape()) of this cell and plan.
template <class F>
cudaError_t with_cell_and_shape(CellKind cell, const GridPlan& plan, const F& f) {
  if (!plan.fits) return cudaErrorInvalidValue;
  switch (cell) {
    case kLstm: return with_shape<Lstm>(plan, f);
    case kGru: return with_shape<Gru>(plan, f);
    case kRnnTanh: return with_shape<RnnTanh>(plan, f);
    default: return with_shape<RnnRelu>(plan, f);
  }
}

template <class T, bool Tf32>
cudaError_t GridKernels<T, Tf32>::forward(CellKind cell, const Forward<T>& a, const GridPlan& plan, void* workspace,
                                          cudaStream_t stream) {
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    return run_grid_forward<decltype(c), T, decltype(shape), Tf32>(a, plan, workspace, stream);
  });
}
template <class T, bool Tf32>
cudaError_t GridKernels<T, Tf32>::backward(CellKind cell, const Backward<T>& a, const GridPlan& plan, void* workspace,
                                           cudaStream_t stream) {
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    return run_grid_backward<decltype(c), T, decltype(shape), Tf32>(a, plan, workspace, stream);
  });
}
template <class T, bool Tf32>
cudaError_t GridKernels<T, Tf32>::resident(CellKind cell, bool backward, const GridPlan& plan, bool* resident) {
  *resident = false;
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    using Shape = decltype(shape);
    const auto ask = [&](auto kernel) {
      int blocks = 0;
      const cudaError_t error = resident_blocks(kernel, Shape::kWarps * 32, size_t(plan.shared_bytes), &blocks);
      *resident = blocks >= 1;
      return error;
    };
    return backward ? ask(grid_backward_kernel<decltype(c), T, Shape, Tf32>)
                    : ask(grid_forward_kernel<decltype(c), T, Shape, Tf32>);
  });
}

// f(GridKernels()) of this type.
template <class T, class F>
cudaError_t with_tf32([[maybe_unused]] bool tf32, const F& f) {
  if constexpr (std::is_same_v<T, float>)
    if (tf32) return f(GridKernels<T, true>());
  return f(GridKernels<T, false>());
}

template <class T>
cudaError_t grid_forward(CellKind cell, const Forward<T>& a, const GridPlan& plan, bool tf32, void* workspace,
                         cudaStream_t stream) {
  return with_tf32<T>(tf32, [&](auto kernels) { return kernels.forward(cell, a, plan, workspace, stream); });
}
template <class T>
cudaError_t grid_backward(CellKind cell, const Backward<T>& a, const GridPlan& plan, bool tf32, void* workspace,
                          cudaStream_t stream) {
  return with_tf32<T>(tf32, [&](auto kernels) { return kernels.backward(cell, a, plan, workspace, stream); });
}
template <class T>
cudaError_t grid_resident(CellKind cell, bool backward, const GridPlan& plan, bool tf32, bool* resident) {
  return with_tf32<T>(tf32, [&](auto kernels) { return kernels.resident(cell, backward, plan, resident); });
}

#define FUSEDRNN_GRID(T)                                                                                        \
  template cudaError_t grid_forward(CellKind, const Forward<T>&, const GridPlan&, bool, void*, cudaStream_t);   \
  template cudaError_t grid_backward(CellKind, const Backward<T>&, const GridPlan&, bool, void*, cudaStream_t); \
  template cudaError_t grid_resident<T>(CellKind, bool, const GridPlan&, bool, bool*);

}  // namespace cuda
}  // namespace fusedrnn
