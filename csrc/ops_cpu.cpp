// The CPU side of the operators: checks, allocation, matrix products and the call of the kernels. Built on LibTorch's
// stable ABI and CPython's limited API, so that one binary serves many versions of both.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/kernels.h"

namespace fusedrnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Input projections are made for this many bytes of steps at a time, so that the time loop finds them in the cache, but
// for no fewer rows than repay packing w_ih.
constexpr int64_t kChunkBytes = 1 << 20, kChunkRows = 256;

template <class Cell>
constexpr cpu::CellKind kKind = cpu::kCells;
template <>
constexpr cpu::CellKind kKind<Lstm> = cpu::kLstm;
template <>
constexpr cpu::CellKind kKind<Gru> = cpu::kGru;
template <>
constexpr cpu::CellKind kKind<RnnTanh> = cpu::kRnnTanh;
template <>
constexpr cpu::CellKind kKind<RnnRelu> = cpu::kRnnRelu;

template <class T>
const cpu::Kernels<T>& kernels() {
  const char* error = nullptr;
  const cpu::Isa* isa = cpu::selected_isa(&error);
  STD_TORCH_CHECK(isa, error);
  return cpu::kernels_of<T>(*isa);
}

// ---------------------------------------------------------------------------------------------- tensors

template <class T>
constexpr ScalarType kScalar = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

// f(T(0)) with the type of t's elements.
template <class F>
auto with_dtype(const Tensor& t, const F& f) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "fusedrnn: expected x of dtype float32 or float64, got ", torch::headeronly::toString(dtype));
  return dtype == ScalarType::Float ? f(0.0f) : f(0.0);
}

template <class T>
int32_t dtype_code() {
  return sizeof(T) == 4 ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64();
}

template <class T, size_t N>
Tensor empty(const std::array<int64_t, N>& sizes) {
  std::array<int64_t, N> strides;
  int64_t stride = 1;
  for (size_t i = N; i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(N, sizes.data(), strides.data(), dtype_code<T>(),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* read(const MaybeTensor& t) {
  return t ? read<T>(*t) : nullptr;
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
MaybeTensor dense(const MaybeTensor& t) { return t ? MaybeTensor(dense(*t)) : t; }

// A matrix in memory that somebody else owns. One of the strides is 1.
template <class T>
struct Matrix {
  T* p;
  int64_t rows, columns, row_stride, column_stride = 1;

  Matrix t() const { return {p, columns, rows, column_stride, row_stride}; }
};
template <class T>
using Const = Matrix<const T>;

cpu::Runner torch_threads();

// out = a b, or out += a b with add.
template <class T>
void multiply(const Matrix<T>& out, const Const<T>& a, const Const<T>& b, bool add = false) {
  const cpu::Kernels<T>& k = kernels<T>();
  const cpu::Runner runner = torch_threads();
  cpu::Gemm<T> g{out.rows,        out.columns, a.columns,      a.p, a.row_stride, a.column_stride, b.p, b.row_stride,
                 b.column_stride, out.p,       out.row_stride, add, nullptr};
  const Tensor workspace = empty<T, 1>({k.product_workspace(g, runner.threads)});
  g.workspace = data<T>(workspace);
  k.product(g, runner);
}

cpu::Runner torch_threads() {
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return {[](int64_t n, cpu::Runner::Body body, void* context) {
            struct Call {
              cpu::Runner::Body body;
              void* context;
            } call{body, context};
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(
                0, n, 1,
                [](int64_t begin, int64_t end, void* p) {
                  const Call& c = *static_cast<Call*>(p);
                  c.body(c.context, begin, end);
                },
                &call));
          },
          int(threads)};
}

// ---------------------------------------------------------------------------------------------- checks

std::string shape_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

std::string shape_of(std::initializer_list<int64_t> sizes) {
  std::string s = "[";
  for (const int64_t n : sizes) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
  return s + "]";
}

void check(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  STD_TORCH_CHECK(t.is_cpu(), "fusedrnn: expected ", name, " on the CPU, as x is");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fusedrnn: expected ", name, " of the dtype of x (",
                  torch::headeronly::toString(dtype), "), got ", torch::headeronly::toString(t.scalar_type()));
  bool same = t.dim() == int64_t(sizes.size());
  if (same) {
    int64_t i = 0;
    for (const int64_t n : sizes) same = same && t.size(i++) == n;
  }
  STD_TORCH_CHECK(same, "fusedrnn: expected ", name, " of shape ", shape_of(sizes), ", got ", shape_of(t));
}

void check(const char* name, const MaybeTensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  if (t) check(name, *t, sizes, dtype);
}

// The inputs that forward and backward share, checked and made contiguous.
template <class Cell, class T>
struct Inputs {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh;
  MaybeTensor b_ih, b_hh;
  Sequence sequence;
  int64_t I, H;

  Inputs(const Tensor& x_, const Tensor& h0_, const MaybeTensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
         const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, bool batch_first, bool reverse) {
    const ScalarType dtype = kScalar<T>;
    STD_TORCH_CHECK(x_.dim() == 3, "fusedrnn: expected x of 3 dimensions, got ", shape_of(x_));
    STD_TORCH_CHECK(w_hh_.dim() == 2, "fusedrnn: expected w_hh of 2 dimensions, got ", shape_of(w_hh_));
    sequence = {x_.size(batch_first ? 1 : 0), x_.size(batch_first ? 0 : 1), batch_first, reverse};
    I = x_.size(2);
    H = w_hh_.size(1);
    const int64_t B = sequence.B, G = Cell::kGates;
    check("h0", h0_, {B, H}, dtype);
    STD_TORCH_CHECK(c0_.has_value() == Cell::kHasCellState, "fusedrnn: c0 is for the LSTM, and the LSTM needs it");
    check("c0", c0_, {B, H}, dtype);
    check("w_ih", w_ih_, {G * H, I}, dtype);
    check("w_hh", w_hh_, {G * H, H}, dtype);
    check("b_ih", b_ih_, {G * H}, dtype);
    check("b_hh", b_hh_, {G * H}, dtype);
    x = dense(x_), h0 = dense(h0_), c0 = dense(c0_), w_ih = dense(w_ih_), w_hh = dense(w_hh_);
    b_ih = dense(b_ih_), b_hh = dense(b_hh_);
  }
};

// One row per step and batch entry, in the layout of x.
template <class T>
Tensor per_row(const Sequence& s, int64_t columns) {
  return empty<T, 3>({s.batch_first ? s.B : s.T, s.batch_first ? s.T : s.B, columns});
}

// ---------------------------------------------------------------------------------------------- forward

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Where the input projection of a call goes: over what is saved for backward, over y, or into a buffer of its own.
template <class Cell, class T>
struct Projection {
  Tensor buffer;
  int64_t ld, steps;  // steps at a time

  Projection(const Inputs<Cell, T>& in, const Tensor& y, const Tensor& saved, bool save, int64_t threads) {
    const Sequence& s = in.sequence;
    const int64_t columns = Cell::kGates * in.H;
    const int64_t step_bytes = std::max<int64_t>(1, s.B * columns * int64_t(sizeof(T)));
    // The rows of some steps are neighbours only when time comes first.
    const int64_t least = (kChunkRows + s.B) / std::max<int64_t>(1, s.B);
    const int64_t fitting = std::max(least, kChunkBytes * threads / step_bytes);
    const int64_t chunks = s.batch_first ? 1 : std::max<int64_t>(1, (s.T + fitting - 1) / fitting);
    steps = (s.T + chunks - 1) / chunks;
    if (Cell::kGates == 1) {
      buffer = y, ld = columns;
    } else if (save) {
      buffer = saved, ld = Cell::kSaved * in.H;
    } else {
      buffer = empty<T, 2>({s.batch_first ? s.rows() : steps * s.B, columns}), ld = columns;
    }
  }
};

template <class Cell, class T>
ForwardResult run_forward(const Inputs<Cell, T>& in, bool save) {
  const Sequence& s = in.sequence;
  const int64_t H = in.H, columns = Cell::kGates * H;
  const cpu::Kernels<T>& k = kernels<T>();
  const cpu::Runner runner = torch_threads();
  const Tensor y = per_row<T>(s, H), h_n = empty<T, 2>({s.B, H});
  const Tensor c_n = Cell::kHasCellState ? empty<T, 2>({s.B, H}) : empty<T, 1>({0});
  const Tensor saved = save && Cell::kSaved ? per_row<T>(s, Cell::kSaved * H) : empty<T, 1>({0});
  const Tensor c = save && Cell::kHasCellState ? per_row<T>(s, H) : empty<T, 1>({0});
  const Tensor workspace = empty<T, 1>({k.forward_workspace(kKind<Cell>, s.B, H)});
  const Projection<Cell, T> projection(in, y, saved, save, runner.threads);
  const bool shared = projection.buffer.get() == y.get() || projection.buffer.get() == saved.get();

  cpu::Forward<T> a{};
  a.sequence = s, a.H = H, a.x = data<T>(projection.buffer), a.ldx = projection.ld, a.save = save;
  a.h0 = read<T>(in.h0), a.c0 = read<T>(in.c0), a.w_hh = read<T>(in.w_hh);
  a.b_ih = read<T>(in.b_ih), a.b_hh = read<T>(in.b_hh);
  a.y = data<T>(y), a.c = data<T>(c), a.h_n = data<T>(h_n), a.c_n = data<T>(c_n), a.workspace = data<T>(workspace);
  const Const<T> w_ih{read<T>(in.w_ih), columns, in.I, in.I};
  // At least once: a sequence of no steps hands the states through.
  for (a.first = 0; a.first == 0 || a.first < s.T; a.first = a.last) {
    a.last = std::min(s.T, a.first + projection.steps);
    const int64_t t0 = s.reverse ? s.T - a.last : a.first;
    const int64_t row0 = s.batch_first ? 0 : t0 * s.B, rows = s.batch_first ? s.rows() : (a.last - a.first) * s.B;
    a.x_row0 = shared ? 0 : row0;
    multiply<T>({a.x + (row0 - a.x_row0) * a.ldx, rows, columns, a.ldx},
                {read<T>(in.x) + row0 * in.I, rows, in.I, in.I}, w_ih.t());
    k.forward(kKind<Cell>, a, runner);
    if (s.T == 0) break;
  }
  return {y, h_n, c_n, saved, c};
}

template <class Cell>
ForwardResult forward(const Tensor& x, const Tensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                      const MaybeTensor& b_ih, const MaybeTensor& b_hh, bool batch_first, bool reverse, bool save) {
  return with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    return run_forward<Cell, T>(Inputs<Cell, T>(x, h0, c0, w_ih, w_hh, b_ih, b_hh, batch_first, reverse), save);
  });
}

// ---------------------------------------------------------------------------------------------- backward

using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Rows of delta paired with the state that the step began with: h_{t-1} in y, or h0 for the first step.
//
// In both layouts row i of delta belongs to row i -+ 1 step of y, so that one product over all rows but those of the
// first step suffices. With the batch first those lie scattered among the others: they are zeroed for the time of the
// product.
template <class Cell, class T>
void recurrent_weight_gradient(const Inputs<Cell, T>& in, const Tensor& y, T* delta, const Matrix<T>& dw_hh) {
  const Sequence& s = in.sequence;
  const int64_t H = in.H, D = Cell::kDeltas * H, K = Cell::kGates * H, R = s.rows();
  if (R == 0) {
    std::fill_n(dw_hh.p, K * H, T(0));
    return;
  }
  T* recurrent = delta + Cell::kRecurrentDelta * H;
  const int64_t first = s.row(s.step(0), 0), hop = s.batch_stride();
  const int64_t shift = s.batch_first ? 1 : s.B;
  multiply<T>(dw_hh, {recurrent + first * D, K, s.B, 1, hop * D}, {read<T>(in.h0), s.B, H, H});
  if (s.T == 1) return;
  Tensor kept;
  if (s.batch_first) {
    kept = empty<T, 2>({s.B, K});
    for (int64_t b = 0; b < s.B; ++b) {
      T* row = recurrent + (first + b * hop) * D;
      std::copy_n(row, K, data<T>(kept) + b * K);
      std::fill_n(row, K, T(0));
    }
  }
  const int64_t delta_row = s.reverse ? 0 : shift, y_row = s.reverse ? shift : 0;
  multiply<T>(dw_hh, {recurrent + delta_row * D, K, R - shift, 1, D}, {read<T>(y) + y_row * H, R - shift, H, H}, true);
  if (s.batch_first)
    for (int64_t b = 0; b < s.B; ++b) std::copy_n(data<T>(kept) + b * K, K, recurrent + (first + b * hop) * D);
}

// Calls f(slot, gate, count) for each run of slots of delta that are neighbouring gates of the input side too.
template <class Cell, class F>
void input_gate_runs(const F& f) {
  for (int slot = 0, end; slot < Cell::kGates; slot = end) {
    end = slot + 1;
    while (end < Cell::kGates && Cell::kInputGate[end] == Cell::kInputGate[end - 1] + 1) ++end;
    f(slot, Cell::kInputGate[slot], end - slot);
  }
}

// dx = delta w_ih, where delta's slots are the gates in an order of their own.
template <class Cell, class T>
void input_gradient(const Inputs<Cell, T>& in, const T* delta, const Tensor& dx) {
  const int64_t H = in.H, I = in.I, D = Cell::kDeltas * H, R = in.sequence.rows();
  input_gate_runs<Cell>([&](int slot, int gate, int count) {
    multiply<T>({data<T>(dx), R, I, I}, {delta + slot * H, R, count * H, D},
                {read<T>(in.w_ih) + gate * H * I, count * H, I, I}, slot > 0);
  });
}

template <class Cell, class T>
void weight_gradients(const Inputs<Cell, T>& in, const Tensor& y, T* delta, const Tensor& dw_ih, const Tensor& dw_hh) {
  const int64_t H = in.H, I = in.I, D = Cell::kDeltas * H, R = in.sequence.rows();
  input_gate_runs<Cell>([&](int slot, int gate, int count) {
    multiply<T>({data<T>(dw_ih) + gate * H * I, count * H, I, I}, {delta + slot * H, count * H, R, 1, D},
                {read<T>(in.x), R, I, I});
  });
  recurrent_weight_gradient<Cell, T>(in, y, delta, {data<T>(dw_hh), Cell::kGates * H, H, H});
}

// Either may be of no elements: not asked for.
template <class Cell, class T>
void bias_gradients(const Inputs<Cell, T>& in, const T* delta, const Tensor& db_ih, const Tensor& db_hh) {
  if (db_ih.numel() == 0 && db_hh.numel() == 0) return;
  const int64_t H = in.H, G = Cell::kGates, D = Cell::kDeltas * H;
  const Tensor sums = empty<T, 1>({D});
  kernels<T>().column_sums(delta, in.sequence.rows(), D, data<T>(sums), torch_threads());
  if (db_ih.numel())
    for (int slot = 0; slot < G; ++slot)
      std::copy_n(read<T>(sums) + slot * H, H, data<T>(db_ih) + Cell::kInputGate[slot] * H);
  if (db_hh.numel()) std::copy_n(read<T>(sums) + Cell::kRecurrentDelta * H, G * H, data<T>(db_hh));
}

template <class Cell, class T>
BackwardResult run_backward(const Inputs<Cell, T>& in, const MaybeTensor& dy, const MaybeTensor& dh_n,
                            const MaybeTensor& dc_n, const Tensor& y, const Tensor& saved, const Tensor& c, bool need_x,
                            bool need_w) {
  const Sequence& s = in.sequence;
  const int64_t H = in.H, G = Cell::kGates;
  const cpu::Kernels<T>& k = kernels<T>();
  const Tensor delta = empty<T, 2>({s.rows(), Cell::kDeltas * H});
  const Tensor workspace = empty<T, 1>({k.backward_workspace(kKind<Cell>, s.B, H)});
  const Tensor dh0 = empty<T, 2>({s.B, H}), dc0 = Cell::kHasCellState ? empty<T, 2>({s.B, H}) : empty<T, 1>({0});

  cpu::Backward<T> a{};
  a.sequence = s, a.H = H, a.saved = read<T>(saved), a.ld_saved = Cell::kSaved * H;
  a.y = read<T>(y), a.c = read<T>(c), a.h0 = read<T>(in.h0), a.c0 = read<T>(in.c0), a.w_hh = read<T>(in.w_hh);
  a.dy = read<T>(dy), a.dh_n = read<T>(dh_n), a.dc_n = read<T>(dc_n);
  a.delta = data<T>(delta), a.dh0 = data<T>(dh0), a.dc0 = data<T>(dc0), a.workspace = data<T>(workspace);
  k.backward(kKind<Cell>, a, torch_threads());

  const auto vector = [&](bool wanted) { return empty<T, 1>({wanted ? G * H : 0}); };
  const Tensor dx = need_x ? per_row<T>(s, in.I) : empty<T, 1>({0});
  const Tensor dw_ih = need_w ? empty<T, 2>({G * H, in.I}) : empty<T, 1>({0});
  const Tensor dw_hh = need_w ? empty<T, 2>({G * H, H}) : empty<T, 1>({0});
  const Tensor db_ih = vector(need_w && in.b_ih), db_hh = vector(need_w && in.b_hh);
  if (need_x) input_gradient<Cell, T>(in, a.delta, dx);
  if (need_w) weight_gradients<Cell, T>(in, y, a.delta, dw_ih, dw_hh);
  bias_gradients<Cell, T>(in, a.delta, db_ih, db_hh);
  return {dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh};
}

template <class Cell>
BackwardResult backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n, const Tensor& x,
                        const Tensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const MaybeTensor& b_ih, const MaybeTensor& b_hh, const Tensor& y, const Tensor& saved,
                        const Tensor& c, bool batch_first, bool reverse, bool need_x, bool need_w) {
  return with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Inputs<Cell, T> in(x, h0, c0, w_ih, w_hh, b_ih, b_hh, batch_first, reverse);
    const Sequence& s = in.sequence;
    const int64_t outer = batch_first ? s.B : s.T, inner = batch_first ? s.T : s.B, H = in.H;
    check("dy", dy, {outer, inner, H}, kScalar<T>);
    check("dh_n", dh_n, {s.B, H}, kScalar<T>);
    check("dc_n", dc_n, {s.B, H}, kScalar<T>);
    check("y", y, {outer, inner, H}, kScalar<T>);
    if (Cell::kSaved) check("saved (was forward run with save?)", saved, {outer, inner, Cell::kSaved * H}, kScalar<T>);
    if (Cell::kHasCellState) check("c (was forward run with save?)", c, {outer, inner, H}, kScalar<T>);
    return run_backward<Cell, T>(in, dense(dy), dense(dh_n), dense(dc_n), dense(y), dense(saved), dense(c), need_x,
                                 need_w);
  });
}

// ---------------------------------------------------------------------------------------------- others

std::string cpu_isa() {
  const char* error = nullptr;
  const cpu::Isa* isa = cpu::selected_isa(&error);
  STD_TORCH_CHECK(isa, error);
  return isa->name;
}

int64_t multiply_add(int64_t rounds) { return kernels<float>().multiply_add(rounds, torch_threads()); }

std::tuple<Tensor, Tensor> activations(const Tensor& x_) {
  const Tensor x = dense(x_);
  STD_TORCH_CHECK(x.dim() == 1, "fusedrnn: expected x of 1 dimension, got ", shape_of(x));
  return with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = x.numel();
    const Tensor s = empty<T, 1>({n}), t = empty<T, 1>({n});
    kernels<T>().activations(read<T>(x), data<T>(s), data<T>(t), n);
    return std::tuple<Tensor, Tensor>(s, t);
  });
}

}  // namespace
}  // namespace fusedrnn

#define FUSEDRNN_DEFINE(m, cell)                                                                                     \
  m.def(cell                                                                                                         \
        "(Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "                   \
        "bool batch_first, bool reverse, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor c)"); \
  m.def(cell                                                                                                         \
        "_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, "           \
        "Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor y, Tensor saved, Tensor c, bool batch_first, "              \
        "bool reverse, bool need_x, bool need_w) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, "              \
        "Tensor dw_hh, Tensor db_ih, Tensor db_hh)")

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  FUSEDRNN_DEFINE(m, "lstm");
  FUSEDRNN_DEFINE(m, "gru");
  FUSEDRNN_DEFINE(m, "rnn_tanh");
  FUSEDRNN_DEFINE(m, "rnn_relu");
  m.def("cpu_isa() -> str");
  m.def("multiply_add(int rounds) -> int");
  m.def("activations(Tensor x) -> (Tensor sigmoid, Tensor tanh)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("lstm", TORCH_BOX(&fusedrnn::forward<fusedrnn::Lstm>));
  m.impl("lstm_backward", TORCH_BOX(&fusedrnn::backward<fusedrnn::Lstm>));
  m.impl("gru", TORCH_BOX(&fusedrnn::forward<fusedrnn::Gru>));
  m.impl("gru_backward", TORCH_BOX(&fusedrnn::backward<fusedrnn::Gru>));
  m.impl("rnn_tanh", TORCH_BOX(&fusedrnn::forward<fusedrnn::RnnTanh>));
  m.impl("rnn_tanh_backward", TORCH_BOX(&fusedrnn::backward<fusedrnn::RnnTanh>));
  m.impl("rnn_relu", TORCH_BOX(&fusedrnn::forward<fusedrnn::RnnRelu>));
  m.impl("rnn_relu_backward", TORCH_BOX(&fusedrnn::backward<fusedrnn::RnnRelu>));
  m.impl("activations", TORCH_BOX(&fusedrnn::activations));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fusedrnn::cpu_isa));
  m.impl("multiply_add", TORCH_BOX(&fusedrnn::multiply_add));
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
