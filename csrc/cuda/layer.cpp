#include "layer.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "blas.h"

namespace fusedrnn {
namespace cuda {
namespace {

template <class T>
constexpr ValueType kValueType = std::is_same_v<T, double>          ? ValueType::kFloat64
                                 : std::is_same_v<T, float>         ? ValueType::kFloat32
                                 : std::is_same_v<T, __nv_bfloat16> ? ValueType::kBfloat16
                                                                    : ValueType::kFloat16;
template <class T>
constexpr cudaDataType kDataType = std::is_same_v<T, double>          ? CUDA_R_64F
                                   : std::is_same_v<T, float>         ? CUDA_R_32F
                                   : std::is_same_v<T, __nv_bfloat16> ? CUDA_R_16BF
                                                                      : CUDA_R_16F;

// What the layer must know of a cell, as numbers.
struct CellSizes {
  const char* name;
  int gates, saved, deltas, recurrent_delta;
  const int* input_gate;
};
template <class Cell>
constexpr CellSizes sizes_of(const char* name) {
  return {name, Cell::kGates, Cell::kSaved, Cell::kDeltas, Cell::kRecurrentDelta, Cell::kInputGate};
}
constexpr CellSizes kCells[] = {sizes_of<Lstm>("lstm"), sizes_of<Gru>("gru"), sizes_of<RnnTanh>("rnn_tanh"),
                                sizes_of<RnnRelu>("rnn_relu")};

// A call of a layer: its shape, and the products, copies and launches that it is made of.
template <class T>
class Call {
 public:
  Call(const Layer<T>& layer, const Device& device)
      : a(layer),
        cell(kCells[layer.cell]),
        device(device),
        rows(layer.offsets ? layer.offsets[layer.steps] : layer.steps * layer.B),
        G(cell.gates),
        tf32(std::is_same_v<T, float> && device.limits.capability >= 80 && allows_tf32(device.blas)) {}

  void check(cudaError_t error, const char* what) const {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("fusedrnn: ") + what + " failed: " + cudaGetErrorString(error) + " (" +
                             cell.name + ", " + std::to_string(sizeof(T)) + " bytes a value, T " +
                             std::to_string(a.steps) + ", B " + std::to_string(a.B) + ", I " + std::to_string(a.I) +
                             ", H " + std::to_string(a.H) + ")");
  }

  // c [M, N] = a b, or += where it is added.
  template <class C>
  void product(int64_t M, int64_t N, int64_t K, const Matrix& left, const Matrix& right, C* c, int64_t ldc,
               bool add = false) const {
    if (M == 0 || N == 0) return;
    if (K > 0) return gemm(device.blas, M, N, K, left, right, {c, kDataType<C>, ldc}, add);
    if (!add) fill_zero(c, ldc, M, N);
  }
  Matrix matrix(const T* p, int64_t ld, bool transposed = false) const { return {p, kDataType<T>, ld, transposed}; }

  // M rows of N values, each ld after the one before.
  template <class C>
  void fill_zero(C* p, int64_t ld, int64_t M, int64_t N) const {
    each_piece(M, N, ld == N, ld * int64_t(sizeof(C)), [&](int64_t row, int64_t rows, int64_t columns) {
      const size_t width = size_t(columns) * sizeof(C);
      check(rows == 1 ? cudaMemsetAsync(p + row * ld, 0, width, device.stream)
                      : cudaMemset2DAsync(p, size_t(ld) * sizeof(C), 0, width, size_t(rows), device.stream),
            "zeros on the device");
    });
  }
  // The same of another matrix, or zeros where that is null.
  void copy(T* to, int64_t to_ld, const T* from, int64_t from_ld, int64_t M, int64_t N) const {
    if (!from) return fill_zero(to, to_ld, M, N);
    const int64_t bytes = sizeof(T), pitch = (to_ld > from_ld ? to_ld : from_ld) * bytes;
    each_piece(M, N, to_ld == N && from_ld == N, pitch, [&](int64_t row, int64_t rows, int64_t columns) {
      T* p = to + row * to_ld;
      const T* q = from + row * from_ld;
      const size_t width = size_t(columns * bytes);
      check(rows == 1 ? cudaMemcpyAsync(p, q, width, cudaMemcpyDeviceToDevice, device.stream)
                      : cudaMemcpy2DAsync(p, size_t(to_ld * bytes), q, size_t(from_ld * bytes), width, size_t(rows),
                                          cudaMemcpyDeviceToDevice, device.stream),
            "a copy on the device");
    });
  }
  void copy_state(T* to, const T* from) const {
    if (to) copy(to, a.H, from, a.H, a.B, a.H);
  }

  // Tensors of `columns` values a row: in the layout of x, and with time first.
  template <class P>
  Steps<P> in_layout(P* p, int64_t columns) const {
    if (a.offsets) return {p, columns, 0};
    return {p, (a.batch_first ? 1 : a.B) * columns, (a.batch_first ? a.steps : 1) * columns};
  }
  template <class P>
  Steps<P> time_first(P* p, int64_t columns) const {
    if (a.offsets) return {p, columns, 0};
    return {p, a.B * columns, columns};
  }

  // Of the step that is run as the k-th: how many rows it has, and where they begin and how far apart they are.
  int64_t rows_of(int64_t k) const {
    const int64_t t = step_of(k, a.steps, a.reverse);
    return a.offsets ? a.offsets[t + 1] - a.offsets[t] : a.B;
  }
  template <class P>
  P* at(const Steps<P>& all, int64_t k) const {
    const int64_t t = step_of(k, a.steps, a.reverse);
    return all.at(a.offsets ? a.offsets[t] : t);
  }
  template <class P>
  int64_t pitch(const Steps<P>& all) const {
    return a.offsets ? all.step : all.row;
  }

  bool masked() const { return a.offsets || a.lengths || a.resets; }
  Masks masks(int64_t detach_every) const {
    MaskSources from{a.steps, a.B, a.resets, a.lengths, nullptr, detach_every};
    if (a.offsets) {
      int64_t* offsets = device.template take<int64_t>(a.steps + 1);
      check(copy_offsets(a.offsets, a.steps + 1, offsets, device.stream), "copy_offsets");
      from.offsets = offsets;
    }
    RowFlags* flags = device.template take<RowFlags>(a.steps * a.B);
    check(make_flags(from, flags, device.stream), "make_flags");
    return {flags, from.offsets};
  }
  // A masked copy of rows of T, see MaskedCopy.
  T* copy_masked(const Masks& masks, const Steps<const T>& from, int64_t columns, bool before, const T* initial) const {
    using V = std::conditional_t<sizeof(T) == 2, unsigned short,
                                 std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>>;
    T* to = device.template take<T>(rows * columns);
    const auto bits = [](auto* p) {
      using P = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(p)>>, const V, V>;
      return reinterpret_cast<P*>(p);
    };
    const Steps<T> there = in_layout(to, columns);
    const MaskedCopy<V> copy{a.steps,
                             a.B,
                             columns,
                             a.reverse,
                             masks,
                             {bits(from.p), from.step, from.row},
                             {bits(there.p), there.step, there.row},
                             before,
                             bits(initial)};
    check(masked_copy(copy, device.stream), "masked_copy");
    return to;
  }

  Choice choose(bool backward, bool masked) const {
    const Asked asked{backward, cell.gates, tf32 ? ValueType::kTf32 : kValueType<T>, a.steps, a.B, a.H};
    Choice choice = select(asked, device.limits, device.algorithm);
    if (choice.error.empty() && choice.algorithm == Algorithm::kGrid && !resident(backward, masked, choice)) {
      Limits without = device.limits;
      without.cooperative = false;
      if (!forced()) return select(asked, without, nullptr);
      choice.error = "the algorithm grid needs all its blocks to be resident, which they cannot be here";
    }
    if (!choice.error.empty()) throw std::runtime_error("fusedrnn: " + choice.error);
    return choice;
  }

  bool resident(bool backward, bool masked, const Choice& choice) const {
    bool all = false;
    if constexpr (!std::is_same_v<T, double>)
      check(grid_resident<T>(a.cell, backward, masked, choice.grid, tf32, &all), "grid_resident");
    return all;
  }

  // Whether a launch found fewer multiprocessors than the device says it has, in a green context for example, so that
  // another algorithm has to serve. Nothing was launched then.
  bool fewer_multiprocessors(cudaError_t error) const {
    return error == cudaErrorCooperativeLaunchTooLarge && !forced();
  }
  bool forced() const { return device.algorithm && *device.algorithm; }

  void project(T* to) const { product(rows, G * a.H, a.I, matrix(a.x, a.ldx), matrix(a.w_ih, a.I, true), to, G * a.H); }

  const Layer<T>& a;
  const CellSizes& cell;
  const Device& device;
  const int64_t rows, G;
  const bool tf32;

 private:
  // f(first row, rows, columns) of pieces that a copy of two dimensions takes: of one row where a pitch is too large.
  template <class Piece>
  void each_piece(int64_t M, int64_t N, bool dense, int64_t pitch, const Piece& f) const {
    if (M == 0 || N == 0) return;
    if (dense) return f(0, 1, M * N);
    if (pitch <= device.max_pitch) return f(0, M, N);
    for (int64_t row = 0; row < M; ++row) f(row, 1, N);
  }
};

// The loop over the steps, by the algorithm that serves it: steps(), block(shape) or grid(plan, workspace).
template <class T, class BySteps, class InBlock, class InGrid>
void run_loop(const Call<T>& call, bool backward, bool masked, const BySteps& steps, const InBlock& block,
              const InGrid& grid) {
  const Choice choice = call.choose(backward, masked);
  if constexpr (!std::is_same_v<T, double>) {  // for which there are no other kernels
    if (choice.algorithm == Algorithm::kBlock)
      return call.check(block(choice.block), backward ? "block_backward" : "block_forward");
    if (choice.algorithm == Algorithm::kGrid) {
      const cudaError_t error = grid(choice.grid, call.device.template take<char>(choice.grid.workspace_bytes));
      if (!call.fewer_multiprocessors(error)) return call.check(error, backward ? "grid_backward" : "grid_forward");
    }
  }
  steps();
}

// ---------------------------------------------------------------------------------------------- forward

// Step by step: the product of the state before with w_hh, then the pointwise kernel.
template <class T>
void forward_steps(const Call<T>& call, const Forward<T>& f) {
  using F = typename Carried<T>::F;
  const int64_t N = call.G * f.H;
  F* product = call.device.template take<F>(f.B * N);
  const Carried<T> carried{call.device.template take<F>(f.B * f.H), call.device.template take<F>(f.B * f.H)};
  const T* h = f.h0;
  if (!h) {
    // Zeros are multiplied too: a NaN in w_hh reaches the first step.
    T* zeros = call.device.template take<T>(f.B * f.H);
    call.fill_zero(zeros, f.H, f.B, f.H);
    h = zeros;
  }
  for (int64_t k = 0, ld = f.H; k < f.steps; ++k) {
    call.product(f.B, N, f.H, call.matrix(h, ld), call.matrix(f.w_hh, f.H, true), product, N);
    call.check(step_forward<T>(call.a.cell, f, k, product, carried, call.device.stream), "step_forward");
    h = f.y.at(step_of(k, f.steps, f.reverse)), ld = f.y.row;
  }
}

// The same with masks.
template <class T>
void forward_steps(const Call<T>& call, const MaskedForward<T>& f) {
  using F = typename Carried<T>::F;
  const int64_t N = call.G * f.H;
  F* product = call.device.template take<F>(f.B * N);
  T* operand = call.device.template take<T>(f.B * f.H);
  const Carried<T> carried{call.device.template take<F>(f.B * f.H), call.device.template take<F>(f.B * f.H)};
  for (int64_t k = -1; k < f.steps; ++k) {
    if (k >= 0)
      call.product(call.rows_of(k), N, f.H, call.matrix(operand, f.H), call.matrix(f.w_hh, f.H, true), product, N);
    call.check(step_forward<T>(call.a.cell, f, k, k < 0 ? nullptr : product, carried, operand, call.device.stream),
               "step_forward");
  }
}

// A: Forward<T> or MaskedForward<T>.
template <class T, class A>
void forward_loop(const Call<T>& call, const A& f) {
  if (f.steps == 0 || f.B == 0 || f.H == 0) {
    call.copy_state(f.h_n, f.h0);
    return call.copy_state(f.c_n, f.c0);
  }
  const cudaStream_t stream = call.device.stream;
  run_loop(
      call, false, std::is_same_v<A, MaskedForward<T>>, [&] { forward_steps(call, f); },
      [&](const auto& shape) { return block_forward<T>(call.a.cell, f, shape, stream); },
      [&](const auto& plan, void* workspace) {
        return grid_forward<T>(call.a.cell, f, plan, call.tf32, workspace, stream);
      });
}

// ---------------------------------------------------------------------------------------------- backward

// A: Backward<T> or MaskedBackward<T>.
template <class T, class A>
void backward_steps(const Call<T>& call, const A& b) {
  using F = typename Carried<T>::F;
  const int64_t N = call.G * b.H;
  F* product = call.device.template take<F>(b.B * b.H);
  const Carried<T> carried{call.device.template take<F>(b.B * b.H), call.device.template take<F>(b.B * b.H)};
  const int64_t first = b.dh0 || b.dc0 ? -1 : 0;
  for (int64_t k = b.steps - 1; k >= first; --k) {
    const bool last = k == b.steps - 1;
    if (!last) {
      const T* delta = call.at(b.delta, k + 1) + call.cell.recurrent_delta * b.H;
      call.product(call.rows_of(k + 1), b.H, N, call.matrix(delta, call.pitch(b.delta)), call.matrix(b.w_hh, b.H),
                   product, b.H);
    }
    call.check(step_backward<T>(call.a.cell, b, k, last ? nullptr : product, carried, call.device.stream),
               "step_backward");
  }
}

template <class T, class A>
void backward_loop(const Call<T>& call, const A& b) {
  if (b.steps == 0 || b.B == 0 || b.H == 0) {
    call.copy_state(b.dh0, b.dh_n);
    return call.copy_state(b.dc0, b.dc_n);
  }
  const cudaStream_t stream = call.device.stream;
  run_loop(
      call, true, std::is_same_v<A, MaskedBackward<T>>, [&] { backward_steps(call, b); },
      [&](const auto& shape) { return block_backward<T>(call.a.cell, b, shape, stream); },
      [&](const auto& plan, void* workspace) {
        return grid_backward<T>(call.a.cell, b, plan, call.tf32, workspace, stream);
      });
}

// The state before each step, in the layout of x: what w_hh was multiplied with.
template <class T>
const T* states_before(const Call<T>& call, const T* y) {
  const auto& a = call.a;
  T* h = call.device.template take<T>(call.rows * a.H);
  if (call.rows == 0) return h;
  const auto to = call.in_layout(h, a.H);
  const auto from = call.in_layout(y, a.H);
  const int64_t step = to.step, row = to.row, later = a.reverse ? 0 : 1, earlier = a.reverse ? 1 : 0;
  call.copy(to.at(step_of(0, a.steps, a.reverse)), row, a.h0, a.H, a.B, a.H);
  // All steps but one, which are neighbours: of each batch entry, or of all at once.
  if (a.batch_first)
    call.copy(to.at(later), row, from.at(earlier), row, a.B, (a.steps - 1) * a.H);
  else
    call.copy(to.at(later), step, from.at(earlier), step, a.steps - 1, step);
  return h;
}

// Slots of the deltas whose gates are neighbours too, so that one product serves them.
template <class Use>
void each_run(const CellSizes& cell, const Use& use) {
  for (int slot = 0, end; slot < cell.gates; slot = end) {
    for (end = slot + 1; end < cell.gates && cell.input_gate[end] == cell.input_gate[end - 1] + 1;) ++end;
    use(slot, cell.input_gate[slot], end - slot);
  }
}

// x, evenly spaced, as the gradient of w_ih multiplies it: of steps after the end of an entry it may hold anything.
template <class T>
Matrix input_rows(const Call<T>& call, const Masks* masks) {
  const auto& a = call.a;
  if (!a.lengths) return call.matrix(a.x, a.ldx);
  const Steps<const T> x{a.x, (a.batch_first ? 1 : a.B) * a.ldx, (a.batch_first ? a.steps : 1) * a.ldx};
  return call.matrix(call.copy_masked(*masks, x, a.I, false, nullptr), a.I);
}

// masks: null where there are none.
template <class T>
void gradients(const Call<T>& call, const LayerBackward<T>& a, const T* delta, const Masks* masks) {
  const int64_t H = a.H, I = a.I, D = call.cell.deltas * H;
  const Matrix x = a.dw_ih ? input_rows(call, masks) : Matrix{};
  each_run(call.cell, [&](int slot, int gate, int count) {
    const T* from = delta + slot * H;
    if (a.dx)
      call.product(call.rows, I, count * H, call.matrix(from, D), call.matrix(a.w_ih + gate * H * I, I), a.dx, I,
                   slot > 0);
    if (a.dw_ih) call.product(count * H, I, call.rows, call.matrix(from, D, true), x, a.dw_ih + gate * H * I, I);
  });
  if (a.dw_hh) {
    const T* before =
        masks ? call.copy_masked(*masks, call.in_layout(a.y, H), H, true, a.h0) : states_before(call, a.y);
    call.product(call.G * H, H, call.rows, call.matrix(delta + call.cell.recurrent_delta * H, D, true),
                 call.matrix(before, H), a.dw_hh, H);
  }
  if (a.db_ih || a.db_hh) {
    using F = typename Carried<T>::F;
    F* parts = call.device.template take<F>(bias_parts(call.rows) * D);
    call.check(bias_gradients<T>(a.cell, delta, call.rows, H, parts, a.db_ih, a.db_hh, call.device.stream),
               "bias_gradients");
  }
}

// What forward would have saved: forward again, whose other results are not wanted.
template <class T>
const T* saved_again(const Call<T>& call, Forward<T> f, const Masks* masks) {
  const Device& d = call.device;
  const int64_t H = f.H, state = f.B * H;
  T* saved = d.take<T>(call.rows * call.cell.saved * H);
  f.saved = call.time_first(saved, call.cell.saved * H);
  f.y = call.in_layout(d.take<T>(call.rows * H), H);
  f.h_n = d.take<T>(state), f.c_n = d.take<T>(state);
  if (masks)
    forward_loop(call, MaskedForward<T>{f, *masks});
  else
    forward_loop(call, f);
  return saved;
}

template <class T>
Forward<T> forward_of(const Call<T>& call, const Layer<T>& a) {
  T* projected = call.device.template take<T>(call.rows * call.G * a.H);
  call.project(projected);
  Forward<T> f{};
  f.steps = a.steps, f.B = a.B, f.H = a.H, f.reverse = a.reverse;
  f.x = call.in_layout(static_cast<const T*>(projected), call.G * a.H);
  f.h0 = a.h0, f.c0 = a.c0, f.w_hh = a.w_hh, f.b_ih = a.b_ih, f.b_hh = a.b_hh;
  return f;
}

}  // namespace

template <class T>
void run_layer(const LayerForward<T>& a, const Device& device) {
  const Call<T> call(a, device);
  Forward<T> f = forward_of(call, a);
  f.y = call.in_layout(a.y, a.H), f.c = call.time_first(a.c, a.H);
  f.saved = call.time_first(a.saved, call.cell.saved * a.H);
  f.h_n = a.h_n, f.c_n = a.c_n;
  if (call.masked())
    forward_loop(call, MaskedForward<T>{f, call.masks(0)});
  else
    forward_loop(call, f);
}

template <class T>
void run_layer(const LayerBackward<T>& a, const Device& device) {
  const Call<T> call(a, device);
  const bool recompute = call.cell.saved && !a.saved, masked = call.masked() || a.detach_every > 0 || a.dc;
  const Masks made = masked ? call.masks(a.detach_every) : Masks{}, *masks = masked ? &made : nullptr;
  const T* saved = recompute ? saved_again(call, forward_of<T>(call, a), masks) : a.saved;
  T* delta = device.take<T>(call.rows * call.cell.deltas * a.H);
  Backward<T> b{};
  b.steps = a.steps, b.B = a.B, b.H = a.H, b.reverse = a.reverse;
  b.saved = call.time_first(saved, call.cell.saved * a.H), b.c = call.time_first(a.c, a.H);
  b.y = call.in_layout(a.y, a.H), b.dy = a.dy;
  b.h0 = a.h0, b.c0 = a.c0, b.dh_n = a.dh_n, b.dc_n = a.dc_n, b.w_hh = a.w_hh;
  b.delta = call.in_layout(delta, call.cell.deltas * a.H);
  b.dh0 = a.dh0, b.dc0 = a.dc0;
  if (masks)
    backward_loop(call, MaskedBackward<T>{b, made, a.dc});
  else
    backward_loop(call, b);
  gradients(call, a, delta, masks);
}

void tokens_that_count(const MaskSources& lengths, const Steps<const int64_t>& tokens, int64_t* to,
                       const Device& device) {
  const auto check = [](cudaError_t error, const char* what) {
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("fusedrnn: ") + what + " failed: " + cudaGetErrorString(error));
  };
  using V = unsigned long long;
  RowFlags* flags = device.take<RowFlags>(lengths.T * lengths.B);
  check(make_flags(lengths, flags, device.stream), "make_flags");
  const MaskedCopy<V> copy{lengths.T,
                           lengths.B,
                           1,
                           false,
                           {flags, nullptr},
                           {reinterpret_cast<const V*>(tokens.p), tokens.step, tokens.row},
                           {reinterpret_cast<V*>(to), tokens.step, tokens.row},
                           false,
                           nullptr};
  check(masked_copy(copy, device.stream), "masked_copy");
}

#define FUSEDRNN_LAYER_OF(T)                                      \
  template void run_layer(const LayerForward<T>&, const Device&); \
  template void run_layer(const LayerBackward<T>&, const Device&);
FUSEDRNN_LAYER_OF(double)
FUSEDRNN_LAYER_OF(float)
FUSEDRNN_LAYER_OF(__half)
FUSEDRNN_LAYER_OF(__nv_bfloat16)

}  // namespace cuda
}  // namespace fusedrnn
