// The persistent kernels of one type, every cell and shape: what kernels.h declares, chosen at run time.
#pragma once
#include "grid_backward.cuh"
#include "grid_forward.cuh"

namespace fusedrnn {
namespace cuda {

// A struct, so that a file can say in one line that all of a type is compiled there, or elsewhere. With masks or not.
template <class T, bool Tf32, bool Masked>
struct GridKernels {
  using ForwardArguments = std::conditional_t<Masked, MaskedForward<T>, Forward<T>>;
  using BackwardArguments = std::conditional_t<Masked, MaskedBackward<T>, Backward<T>>;
  static cudaError_t forward(CellKind cell, const ForwardArguments& a, const GridPlan& plan, void* workspace,
                             cudaStream_t stream);
  static cudaError_t backward(CellKind cell, const BackwardArguments& a, const GridPlan& plan, void* workspace,
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

template <class T, bool Tf32, bool Masked>
cudaError_t GridKernels<T, Tf32, Masked>::forward(CellKind cell, const ForwardArguments& a, const GridPlan& plan,
                                                  void* workspace, cudaStream_t stream) {
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    return run_grid_forward<decltype(c), T, decltype(shape), Tf32>(a, plan, workspace, stream);
  });
}
template <class T, bool Tf32, bool Masked>
cudaError_t GridKernels<T, Tf32, Masked>::backward(CellKind cell, const BackwardArguments& a, const GridPlan& plan,
                                                   void* workspace, cudaStream_t stream) {
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    return run_grid_backward<decltype(c), T, decltype(shape), Tf32>(a, plan, workspace, stream);
  });
}
template <class T, bool Tf32, bool Masked>
cudaError_t GridKernels<T, Tf32, Masked>::resident(CellKind cell, bool backward, const GridPlan& plan, bool* resident) {
  *resident = false;
  return with_cell_and_shape(cell, plan, [&](auto c, auto shape) {
    using Shape = decltype(shape);
    const auto ask = [&](auto kernel) {
      int blocks = 0;
      const cudaError_t error = resident_blocks(kernel, Shape::kWarps * 32, size_t(plan.shared_bytes), &blocks);
      *resident = blocks >= 1;
      return error;
    };
    return backward ? ask(grid_backward_kernel<decltype(c), T, Shape, Tf32, BackwardArguments>)
                    : ask(grid_forward_kernel<decltype(c), T, Shape, Tf32, ForwardArguments>);
  });
}

// f(GridKernels()) of this type.
template <class T, bool Masked, class F>
cudaError_t with_tf32([[maybe_unused]] bool tf32, const F& f) {
  if constexpr (std::is_same_v<T, float>)
    if (tf32) return f(GridKernels<T, true, Masked>());
  return f(GridKernels<T, false, Masked>());
}

template <class T, class A>
cudaError_t grid_forward(CellKind cell, const A& a, const GridPlan& plan, bool tf32, void* workspace,
                         cudaStream_t stream) {
  constexpr bool kMasked = std::is_same_v<A, MaskedForward<T>>;
  return with_tf32<T, kMasked>(tf32, [&](auto kernels) { return kernels.forward(cell, a, plan, workspace, stream); });
}
template <class T, class A>
cudaError_t grid_backward(CellKind cell, const A& a, const GridPlan& plan, bool tf32, void* workspace,
                          cudaStream_t stream) {
  constexpr bool kMasked = std::is_same_v<A, MaskedBackward<T>>;
  return with_tf32<T, kMasked>(tf32, [&](auto kernels) { return kernels.backward(cell, a, plan, workspace, stream); });
}
template <class T>
cudaError_t grid_resident(CellKind cell, bool backward, bool masked, const GridPlan& plan, bool tf32, bool* resident) {
  const auto ask = [&](auto kernels) { return kernels.resident(cell, backward, plan, resident); };
  return masked ? with_tf32<T, true>(tf32, ask) : with_tf32<T, false>(tf32, ask);
}

#define FUSEDRNN_GRID(T)                                                                                               \
  extern template struct GridKernels<T, false, true>; /* grid_masked_*.cu */                                           \
  template cudaError_t grid_forward<T>(CellKind, const Forward<T>&, const GridPlan&, bool, void*, cudaStream_t);       \
  template cudaError_t grid_backward<T>(CellKind, const Backward<T>&, const GridPlan&, bool, void*, cudaStream_t);     \
  template cudaError_t grid_forward<T>(CellKind, const MaskedForward<T>&, const GridPlan&, bool, void*, cudaStream_t); \
  template cudaError_t grid_backward<T>(CellKind, const MaskedBackward<T>&, const GridPlan&, bool, void*,              \
                                        cudaStream_t);                                                                 \
  template cudaError_t grid_resident<T>(CellKind, bool, bool, const GridPlan&, bool, bool*);

}  // namespace cuda
}  // namespace fusedrnn
