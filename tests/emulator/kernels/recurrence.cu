// Runs the kernels of csrc/cuda over a sequence: those of block and of grid in one launch, those of single steps in a
// loop with a product between them that is as plain as can be.
#include "csrc/cuda/cells.cuh"
#include "grid_tested.h"
#include "recurrence.h"

using namespace fusedrnn;
using namespace fusedrnn::cuda;

namespace {

// c[b][n] = sum over m of a[b][m] w[m][n], or of w[n][m].
template <class T>
__global__ void multiply(const T* a, int64_t stride, const T* w, Compute<T>* c, int M, int N, bool transposed) {
  const int b = int(blockIdx.x), n = int(threadIdx.x);
  Compute<T> sum = 0;
  for (int m = 0; m < M; ++m) {
    const int at = transposed ? n * M + m : m * N + n;
    sum += to_compute(a[b * stride + m]) * to_compute(w[at]);
  }
  c[b * N + n] = sum;
}

// The same with deltas of step t, of the rows that have it, and what of the others is there stays as it was.
template <class T>
__global__ void multiply_deltas(MaskedBackward<T> a, int64_t t, int first, Compute<T>* c, int M) {
  const int64_t b = blockIdx.x, j = threadIdx.x;
  if (a.masks.flags[t * a.B + b] & kIdle) return;
  const auto at = a.masks.place(t, b);
  const T* delta = a.delta.at(at.t, at.b) + first;
  Compute<T> sum = 0;
  for (int m = 0; m < M; ++m) sum += to_compute(delta[m]) * to_compute(a.w_hh[m * a.H + j]);
  c[b * a.H + j] = sum;
}

template <class P>
P* as(const void* p) {
  return static_cast<P*>(const_cast<void*>(p));
}

struct Sizes {
  int64_t T, B, H;
  bool reverse, batch_first, packed;

  template <class P>
  Steps<P> steps(const void* p, int64_t width) const {
    if (packed) return {as<P>(p), width, 0};
    return {as<P>(p), batch_first ? width : B * width, batch_first ? T * width : width};
  }
};

int gates_of(int cell) { return cell == kLstm ? Lstm::kGates : cell == kGru ? Gru::kGates : 1; }
int saved_of(int cell) { return cell == kLstm ? Lstm::kSaved : cell == kGru ? Gru::kSaved : 0; }
int deltas_of(int cell) { return cell == kLstm ? Lstm::kDeltas : cell == kGru ? Gru::kDeltas : 1; }
int recurrent_delta_of(int cell) { return cell == kGru ? Gru::kRecurrentDelta : 0; }

template <class T>
cudaError_t forward_steps(CellKind cell, const Forward<T>& a, Compute<T>* product, const Carried<T>& carried) {
  const int G = gates_of(cell);
  for (int64_t k = 0; k < a.steps || k == 0; ++k) {
    const T* h = k > 0 ? a.y.at(step_of(k - 1, a.steps, a.reverse)) : a.h0;
    const int64_t stride = k > 0 ? a.y.row : a.H;
    cudaError_t error = cudaSuccess;
    if (h)
      error = launch({dim3(unsigned(a.B)), dim3(unsigned(G * a.H))}, multiply<T>, h, stride, a.w_hh, product, int(a.H),
                     int(G * a.H), true);
    if (error == cudaSuccess) error = step_forward<T>(cell, a, k, h ? product : nullptr, carried, nullptr);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t forward_steps(CellKind cell, const MaskedForward<T>& a, Compute<T>* product, const Carried<T>& carried,
                          T* operand) {
  const int G = gates_of(cell);
  cudaError_t error = cudaSuccess;
  for (int64_t k = -1; k < a.steps && error == cudaSuccess; ++k) {
    if (k >= 0)
      error = launch({dim3(unsigned(a.B)), dim3(unsigned(G * a.H))}, multiply<T>, operand, a.H, a.w_hh, product,
                     int(a.H), int(G * a.H), true);
    if (error == cudaSuccess) error = step_forward<T>(cell, a, k, k < 0 ? nullptr : product, carried, operand, nullptr);
  }
  return error;
}

template <class T>
cudaError_t backward_steps(CellKind cell, const MaskedBackward<T>& a, Compute<T>* product, const Carried<T>& carried) {
  cudaError_t error = cudaSuccess;
  for (int64_t k = a.steps - 1; k >= -1 && error == cudaSuccess; --k) {
    const bool last = k == a.steps - 1;
    if (!last)
      error =
          launch({dim3(unsigned(a.B)), dim3(unsigned(a.H))}, multiply_deltas<T>, a, step_of(k + 1, a.steps, a.reverse),
                 int(recurrent_delta_of(cell) * a.H), product, int(gates_of(cell) * a.H));
    if (error == cudaSuccess) error = step_backward<T>(cell, a, k, last ? nullptr : product, carried, nullptr);
  }
  return error;
}

template <class T>
cudaError_t backward_steps(CellKind cell, const Backward<T>& a, Compute<T>* product, const Carried<T>& carried) {
  const int G = gates_of(cell);
  for (int64_t k = a.steps - 1; k >= -1; --k) {
    const bool last = k == a.steps - 1;
    cudaError_t error = cudaSuccess;
    if (!last) {
      const T* delta = a.delta.at(step_of(k + 1, a.steps, a.reverse)) + recurrent_delta_of(cell) * a.H;
      error = launch({dim3(unsigned(a.B)), dim3(unsigned(a.H))}, multiply<T>, delta, a.delta.row, a.w_hh, product,
                     int(G * a.H), int(a.H), false);
    }
    if (error == cudaSuccess) error = step_backward<T>(cell, a, k, last ? nullptr : product, carried, nullptr);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

struct GridLayout {
  int shape, blocks;
  int64_t shared_bytes;
  int teams;
};

// By a plan of a shape that is shipped, or of that of tests.
template <class T, bool Tf32, class A>
cudaError_t forward_grid(int cell, const A& a, const GridLayout& layout, void* workspace) {
  const GridPlan plan = grid_plan_of(layout.shape, {layout.blocks, layout.shared_bytes},
                                     {a.B, a.H, gates_of(cell), int(sizeof(T)), false}, layout.teams);
  if (!plan.fits) return cudaErrorCooperativeLaunchTooLarge;
  if (layout.shape == 0) return grid_tested_forward<T, Tf32>(CellKind(cell), a, plan, workspace);
  return grid_forward<T>(CellKind(cell), a, plan, Tf32, workspace, nullptr);
}
template <class T, bool Tf32, class A>
cudaError_t backward_grid(int cell, const A& a, const GridLayout& layout, void* workspace) {
  const GridPlan plan = grid_plan_of(layout.shape, {layout.blocks, layout.shared_bytes},
                                     {a.B, a.H, gates_of(cell), int(sizeof(T)), true}, layout.teams);
  if (!plan.fits) return cudaErrorCooperativeLaunchTooLarge;
  if (layout.shape == 0) return grid_tested_backward<T, Tf32>(CellKind(cell), a, plan, workspace);
  return grid_backward<T>(CellKind(cell), a, plan, Tf32, workspace, nullptr);
}

// f(T(), whether as TF32) of the type with this number.
template <class F>
cudaError_t with_type(int type, const F& f) {
  switch (type) {
    case 0: return f(double(), std::false_type());
    case 1: return f(float(), std::false_type());
    case 2: return f(float(), std::true_type());
    case 3: return f(__half(), std::false_type());
    default: return f(__nv_bfloat16(), std::false_type());
  }
}

}  // namespace

cudaError_t run_forward(int cell, int type, int kernel, int p, int q, int r, int s, int64_t steps, int64_t B, int64_t H,
                        bool reverse, bool batch_first, const void* x, const void* h0, const void* c0, const void* w_hh,
                        const void* b_ih, const void* b_hh, const void* flags, const void* offsets, void* y, void* c,
                        void* saved, void* h_n, void* c_n, void* product, void* carried_h, void* carried_c,
                        void* workspace, void* operand) {
  const Sizes sizes{steps, B, H, reverse, batch_first, offsets != nullptr};
  return with_type(type, [&](auto zero, auto tf32) {
    using T = decltype(zero);
    const Forward<T> a{steps,
                       B,
                       H,
                       reverse,
                       sizes.steps<const T>(x, gates_of(cell) * H),
                       sizes.steps<T>(y, H),
                       sizes.steps<T>(c, H),
                       sizes.steps<T>(saved, saved_of(cell) * H),
                       as<const T>(h0),
                       as<const T>(c0),
                       as<T>(h_n),
                       as<T>(c_n),
                       as<const T>(w_hh),
                       as<const T>(b_ih),
                       as<const T>(b_hh)};
    using F = Compute<T>;
    const MaskedForward<T> masked{a, {as<const RowFlags>(flags), as<const int64_t>(offsets)}};
    if (kernel == kStepKernel) {
      const Carried<T> carried{as<F>(carried_h), as<F>(carried_c)};
      return flags ? forward_steps<T>(CellKind(cell), masked, as<F>(product), carried, as<T>(operand))
                   : forward_steps<T>(CellKind(cell), a, as<F>(product), carried);
    }
    const auto run = [&](const auto& a) {
      if constexpr (std::is_same_v<T, double>) {
        return cudaErrorInvalidValue;
      } else {
        if (kernel == kBlockKernel) return block_forward<T>(CellKind(cell), a, {p, q}, nullptr);
        return forward_grid<T, decltype(tf32)::value>(cell, a, {p, q, r, s}, workspace);
      }
    };
    return flags ? run(masked) : run(a);
  });
}

cudaError_t run_backward(int cell, int type, int kernel, int p, int q, int r, int s, int64_t steps, int64_t B,
                         int64_t H, bool reverse, bool batch_first, const void* saved, const void* y, const void* c,
                         const void* h0, const void* c0, const void* dy, const void* dh_n, const void* dc_n,
                         const void* dc, const void* w_hh, const void* flags, const void* offsets, void* delta,
                         void* dh0, void* dc0, void* product, void* carried_h, void* carried_c, void* workspace) {
  const Sizes sizes{steps, B, H, reverse, batch_first, offsets != nullptr};
  return with_type(type, [&](auto zero, auto tf32) {
    using T = decltype(zero);
    const Backward<T> a{steps,
                        B,
                        H,
                        reverse,
                        sizes.steps<const T>(saved, saved_of(cell) * H),
                        sizes.steps<const T>(y, H),
                        sizes.steps<const T>(c, H),
                        as<const T>(h0),
                        as<const T>(c0),
                        sizes.steps<const T>(dy, H),
                        as<const T>(dh_n),
                        as<const T>(dc_n),
                        as<const T>(w_hh),
                        sizes.steps<T>(delta, deltas_of(cell) * H),
                        as<T>(dh0),
                        as<T>(dc0)};
    using F = Compute<T>;
    const Masks masks{as<const RowFlags>(flags), as<const int64_t>(offsets)};
    const MaskedBackward<T> masked{a, masks, sizes.steps<const T>(dc, H)};
    if (kernel == kStepKernel) {
      const Carried<T> carried{as<F>(carried_h), as<F>(carried_c)};
      return flags ? backward_steps<T>(CellKind(cell), masked, as<F>(product), carried)
                   : backward_steps<T>(CellKind(cell), a, as<F>(product), carried);
    }
    const auto run = [&](const auto& a) {
      if constexpr (std::is_same_v<T, double>) {
        return cudaErrorInvalidValue;
      } else {
        if (kernel == kBlockKernel) return block_backward<T>(CellKind(cell), a, {p, q}, nullptr);
        return backward_grid<T, decltype(tf32)::value>(cell, a, {p, q, r, s}, workspace);
      }
    };
    return flags ? run(masked) : run(a);
  });
}

cudaError_t run_bias_gradients(int cell, int type, int64_t rows, int64_t H, const void* delta, void* parts, void* db_ih,
                               void* db_hh) {
  return with_type(type, [&](auto zero, auto) {
    using T = decltype(zero);
    return bias_gradients<T>(CellKind(cell), as<const T>(delta), rows, H, as<Compute<T>>(parts), as<T>(db_ih),
                             as<T>(db_hh), nullptr);
  });
}

int is_resident(int cell, int type, bool backward, bool masked, const GridPlan& plan) {
  bool resident = false;
  const cudaError_t error = with_type(type, [&](auto zero, auto tf32) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, double>)
      return cudaErrorInvalidValue;
    else
      return grid_resident<T>(CellKind(cell), backward, masked, plan, decltype(tf32)::value, &resident);
  });
  return error == cudaSuccess ? int(resident) : -1;
}
