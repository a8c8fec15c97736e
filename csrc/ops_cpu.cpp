// The CPU side of the operators: checks, allocation and the call of the layer. Built on LibTorch's stable ABI and
// CPython's limited API, so that one binary serves many versions of both.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/layer.h"
#include "workspace.h"

namespace fusedrnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

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

const cpu::Isa& isa() {
  const char* error = nullptr;
  const cpu::Isa* isa = cpu::selected_isa(&error);
  STD_TORCH_CHECK(isa, error);
  return *isa;
}

// ---------------------------------------------------------------------------------------------- tensors

cpu::Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return cpu::kFloat32;
    case ScalarType::Double: return cpu::kFloat64;
    case ScalarType::BFloat16: return cpu::kBFloat16;
    case ScalarType::Half: return cpu::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "fusedrnn: expected x of dtype float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(t.scalar_type()));
}

int32_t dtype_of(cpu::Type type) {
  switch (type) {
    case cpu::kFloat64: return aoti_torch_dtype_float64();
    case cpu::kBFloat16: return aoti_torch_dtype_bfloat16();
    case cpu::kFloat16: return aoti_torch_dtype_float16();
    case cpu::kFloat32: break;
  }
  return aoti_torch_dtype_float32();
}

// f(T(0)) with the type that kernels compute in.
template <class F>
auto with_compute_type(cpu::Type type, const F& f) {
  return type == cpu::kFloat64 ? f(0.0) : f(0.0f);
}

// Tensors that only backward sees: of this size and more they come from the pool.
constexpr int64_t kWorthPooling = 1 << 20;

template <size_t N>
Tensor empty(cpu::Type type, const std::array<int64_t, N>& sizes, bool pooled = false) {
  std::array<int64_t, N> strides;
  int64_t stride = 1;
  for (size_t i = N; i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  AtenTensorHandle handle;
  if (pooled && stride * cpu::size_of(type) >= kWorthPooling) {
    void* p = Pool::instance().take(size_t(stride * cpu::size_of(type)));
    STD_TORCH_CHECK(p, "fusedrnn: no memory left for ", stride * cpu::size_of(type), " bytes");
    STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
        p, N, sizes.data(), strides.data(), 0, dtype_of(type), aoti_torch_device_type_cpu(), -1, &handle,
        aoti_torch_layout_strided(), nullptr, 0, [](void* p, void*) { Pool::instance().give(p); }, nullptr));
    return Tensor(handle);
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(N, sizes.data(), strides.data(), dtype_of(type),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }
const void* read(const Tensor& t) { return t.const_data_ptr(); }
const void* read(const MaybeTensor& t) { return t ? read(*t) : nullptr; }

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
MaybeTensor dense(const MaybeTensor& t) { return t ? MaybeTensor(dense(*t)) : t; }

// Any layout in which the values of a row are neighbours.
Tensor dense_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}
MaybeTensor dense_rows(const MaybeTensor& t) { return t ? MaybeTensor(dense_rows(*t)) : t; }

// A tensor of one row per step and batch entry, or of the rows of one step, as the kernels see it; nothing when it has
// no elements.
cpu::Stored rows_of(const Tensor& t, cpu::Type type, bool batch_first) {
  const bool none = t.dim() < 2;
  if (none) return {nullptr, type, 0, 0};
  if (t.dim() == 2) return {const_cast<void*>(read(t)), type, t.size(0) * t.stride(0), t.stride(0)};
  return {const_cast<void*>(read(t)), type, t.stride(batch_first ? 1 : 0), t.stride(batch_first ? 0 : 1)};
}

Tensor nothing(cpu::Type type) { return empty<1>(type, {0}); }

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

// Runs a layer in the type that its tensors ask for.
template <class Arguments>
void run(const Arguments& a) {
  Workspace workspace;
  const cpu::Arena arena{[](void* owner, size_t bytes) {
                           void* p = static_cast<Workspace*>(owner)->allocate(bytes);
                           STD_TORCH_CHECK(p, "fusedrnn: no memory left for ", bytes, " bytes of workspace");
                           return p;
                         },
                         &workspace};
  with_compute_type(a.type, [&](auto zero) {
    using T = decltype(zero);
    cpu::run_layer<T>(a, cpu::kernels_of<T>(isa()), torch_threads(), arena);
  });
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
    const auto given = t.sizes();
    int64_t i = 0;
    for (const int64_t n : sizes) same = same && given[i++] == n;
  }
  STD_TORCH_CHECK(same, "fusedrnn: expected ", name, " of shape ", shape_of(sizes), ", got ", shape_of(t));
}

void check(const char* name, const MaybeTensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  if (t) check(name, *t, sizes, dtype);
}

void check_tokens(const Tensor& tokens, int64_t V) {
  STD_TORCH_CHECK(tokens.is_cpu(), "fusedrnn: expected tokens on the CPU, as x is");
  STD_TORCH_CHECK(tokens.scalar_type() == ScalarType::Long, "fusedrnn: expected tokens of dtype int64, got ",
                  torch::headeronly::toString(tokens.scalar_type()));
  STD_TORCH_CHECK(tokens.dim() == 2, "fusedrnn: expected tokens of 2 dimensions, got ", shape_of(tokens));
  const int64_t* p = static_cast<const int64_t*>(read(tokens));
  for (int64_t i = 0, n = tokens.numel(); i < n; ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < V, "fusedrnn: expected tokens from 0 to ", V - 1,
                    ", the rows of the table, got ", p[i]);
}

// The inputs that forward and backward share, checked and made dense.
struct Inputs {
  Tensor x;
  MaybeTensor h0, c0;
  Tensor w_ih, w_hh;
  MaybeTensor b_ih, b_hh, tokens;
  bool batch_first;
  ScalarType dtype{};
  bool one_step = false;  // x is [B, I], y and dy are [B, H]
  bool layered = false;   // states are [1, B, H] instead of [B, H], and so are those that are returned

  void check_state(const char* name, const MaybeTensor& t, const cpu::Layer& a) const {
    layered ? check(name, t, {1, a.B, a.H}, dtype) : check(name, t, {a.B, a.H}, dtype);
  }
  void check_rows(const char* name, const MaybeTensor& t, const cpu::Layer& a, int64_t columns) const {
    one_step      ? check(name, t, {a.B, columns}, dtype)
    : batch_first ? check(name, t, {a.B, a.T, columns}, dtype)
                  : check(name, t, {a.T, a.B, columns}, dtype);
  }
  Tensor new_state(const cpu::Layer& a) const {
    return layered ? empty<3>(a.type, {1, a.B, a.H}) : empty<2>(a.type, {a.B, a.H});
  }
  // A result with one row per step and batch entry, in the layout of x.
  Tensor per_row(const cpu::Layer& a, int64_t columns) const {
    return one_step      ? empty<2>(a.type, {a.B, columns})
           : batch_first ? empty<3>(a.type, {a.B, a.T, columns})
                         : empty<3>(a.type, {a.T, a.B, columns});
  }

  // The arguments of the layer in `a`.
  template <class Cell>
  void fill(cpu::Layer& a, bool reverse) {
    dtype = x.scalar_type();
    a.kind = kKind<Cell>, a.type = type_of(x), a.reverse = reverse;
    one_step = !tokens && x.dim() == 2;
    STD_TORCH_CHECK(one_step || x.dim() == (tokens ? 2 : 3), "fusedrnn: expected x of ", tokens ? 2 : 3,
                    " dimensions, got ", shape_of(x));
    STD_TORCH_CHECK(w_hh.dim() == 2, "fusedrnn: expected w_hh of 2 dimensions, got ", shape_of(w_hh));
    if (tokens) {
      tokens = dense(*tokens);
      check_tokens(*tokens, x.size(0));
    }
    const Tensor& steps = tokens ? *tokens : x;
    a.T = one_step ? 1 : steps.size(batch_first ? 1 : 0), a.B = steps.size(one_step || batch_first ? 0 : 1);
    a.I = x.size(x.dim() - 1), a.H = w_hh.size(1), a.V = tokens ? x.size(0) : 0;
    const int64_t G = Cell::kGates;
    layered = !one_step && (!h0 || h0->dim() == 3);
    check_state("h0", h0, a);
    STD_TORCH_CHECK(c0.has_value() == (Cell::kHasCellState && h0),
                    "fusedrnn: c0 is for the LSTM, which takes both states or none");
    check_state("c0", c0, a);
    check("w_ih", w_ih, {G * a.H, a.I}, dtype);
    check("w_hh", w_hh, {G * a.H, a.H}, dtype);
    check("b_ih", b_ih, {G * a.H}, dtype);
    check("b_hh", b_hh, {G * a.H}, dtype);
    x = tokens ? dense(x) : dense_rows(x), h0 = dense(h0), c0 = dense(c0), w_ih = dense(w_ih), w_hh = dense(w_hh);
    b_ih = dense(b_ih), b_hh = dense(b_hh);
    if (tokens) {
      a.x = {const_cast<void*>(read(x)), a.type, 0, a.I};
      static constexpr int64_t kNone = 0;  // not null, which would say that x has a row per step
      const void* p = tokens->numel() ? read(*tokens) : &kNone;
      a.tokens = {static_cast<const int64_t*>(p), batch_first ? 1 : a.B, batch_first ? a.T : 1};
    } else {
      a.x = rows_of(x, a.type, batch_first);
    }
    a.h0 = read(h0), a.c0 = read(c0), a.w_ih = read(w_ih), a.w_hh = read(w_hh), a.b_ih = read(b_ih),
    a.b_hh = read(b_hh);
  }

  // Puts the rows that tokens pick in the place of the table, which has more: they cost less to project.
  void pick_rows(cpu::Layer& a) {
    const Tensor rows = per_row(a, a.I);
    const auto* ids = static_cast<const int64_t*>(read(*tokens));
    const auto* from = static_cast<const char*>(read(x));
    auto* to = static_cast<char*>(data(rows));
    const size_t bytes = size_t(a.I * cpu::size_of(a.type));
    for (int64_t i = 0; bytes && i < a.T * a.B; ++i)
      std::memcpy(to + size_t(i) * bytes, from + size_t(ids[i]) * bytes, bytes);
    x = rows, a.x = rows_of(x, a.type, batch_first), a.tokens = {}, a.V = 0;
  }
};

// ---------------------------------------------------------------------------------------------- operators

// y, h_n, for the LSTM c_n.
template <class Cell>
using States = std::conditional_t<Cell::kHasCellState, std::tuple<Tensor, Tensor, Tensor>, std::tuple<Tensor, Tensor>>;

template <class Cell>
States<Cell> forward(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                     const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                     bool batch_first, bool reverse) {
  cpu::LayerForward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first};
  in.fill<Cell>(a, reverse);
  if (tokens && a.T * a.B <= a.V) in.pick_rows(a);
  const Tensor y = in.per_row(a, a.H), h_n = in.new_state(a);
  a.y = rows_of(y, a.type, batch_first), a.h_n = data(h_n);
  if constexpr (Cell::kHasCellState) {
    const Tensor c_n = in.new_state(a);
    a.c_n = data(c_n);
    run(a);
    return {y, h_n, c_n};
  } else {
    run(a);
    return {y, h_n};
  }
}

using SavingResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Cell>
SavingResult saving(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                    const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                    bool batch_first, bool reverse, bool recompute) {
  cpu::LayerForward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first};
  in.fill<Cell>(a, reverse);
  const Tensor y = in.per_row(a, a.H), h_n = in.new_state(a);
  const Tensor c_n = Cell::kHasCellState ? in.new_state(a) : nothing(a.type);
  const auto kept = [&](bool any, int64_t columns) {
    return any ? empty<3>(a.type, {a.T, a.B, columns}, true) : nothing(a.type);
  };
  const Tensor saved = kept(!recompute && Cell::kSaved, Cell::kSaved * a.H), c = kept(Cell::kHasCellState, a.H);
  a.y = rows_of(y, a.type, batch_first), a.saved = rows_of(saved, a.type, false), a.c = rows_of(c, a.type, false);
  a.h_n = data(h_n), a.c_n = data(c_n);
  run(a);
  return {y, h_n, c_n, saved, c};
}

using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Cell>
BackwardResult backward(const MaybeTensor& dy_, const MaybeTensor& dh_n_, const MaybeTensor& dc_n_, const Tensor& x,
                        const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens, const Tensor& y_,
                        const Tensor& saved_, const Tensor& c_, bool batch_first, bool reverse, bool need_x,
                        bool need_w) {
  cpu::LayerBackward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first};
  in.fill<Cell>(a, reverse);
  const int64_t G = Cell::kGates;
  in.check_rows("dy", dy_, a, a.H);
  in.check_state("dh_n", dh_n_, a);
  in.check_state("dc_n", dc_n_, a);
  in.check_rows("y", y_, a, a.H);
  const bool recompute = Cell::kSaved && saved_.dim() == 1 && saved_.numel() == 0;
  if (Cell::kSaved && !recompute) check("saved", saved_, {a.T, a.B, Cell::kSaved * a.H}, in.dtype);
  if (Cell::kHasCellState) check("c", c_, {a.T, a.B, a.H}, in.dtype);
  const Tensor y = dense_rows(y_), saved = dense(saved_), c = dense(c_);
  const MaybeTensor dy = dense_rows(dy_), dh_n = dense(dh_n_), dc_n = dense(dc_n_);
  a.y = rows_of(y, a.type, batch_first), a.saved = rows_of(saved, a.type, false), a.c = rows_of(c, a.type, false);
  if (dy) a.dy = rows_of(*dy, a.type, batch_first);
  a.dh_n = read(dh_n), a.dc_n = read(dc_n);

  const auto wanted = [&](bool is, int64_t rows, int64_t columns) {
    return is ? empty<2>(a.type, {rows, columns}) : nothing(a.type);
  };
  const auto bias = [&](const MaybeTensor& b) { return empty<1>(a.type, {need_w && b ? G * a.H : 0}); };
  const Tensor dx = need_x && !tokens ? in.per_row(a, a.I) : wanted(need_x, a.V, a.I);
  const Tensor dh0 = h0 ? in.new_state(a) : nothing(a.type), dc0 = c0 ? in.new_state(a) : nothing(a.type);
  const Tensor dw_ih = wanted(need_w, G * a.H, a.I), dw_hh = wanted(need_w, G * a.H, a.H);
  const Tensor db_ih = bias(b_ih), db_hh = bias(b_hh);
  if (need_x) a.dx = tokens ? cpu::Stored{data(dx), a.type, 0, a.I} : rows_of(dx, a.type, batch_first);
  a.dh0 = data(dh0), a.dc0 = data(dc0), a.dw_ih = data(dw_ih), a.dw_hh = data(dw_hh);
  a.db_ih = data(db_ih), a.db_hh = data(db_hh);
  run(a);
  return {dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh};
}

std::string cpu_isa() { return isa().name; }

int64_t multiply_add(int64_t rounds) { return isa().f32->multiply_add(rounds, torch_threads()); }

// The phases of this thread's calls since the last time that this was called; turns measuring on or off.
std::vector<int64_t> cpu_phases(bool on) {
  const std::vector<int64_t> ns(cpu::phases.ns, cpu::phases.ns + cpu::kPhases);
  cpu::phases = {};
  cpu::phases.on = on;
  return ns;
}

void cpu_keep_memory(int64_t bytes) { Pool::instance().limit(size_t(std::max<int64_t>(0, bytes))); }

std::tuple<Tensor, Tensor> activations(const Tensor& x_) {
  const Tensor x = dense(x_);
  STD_TORCH_CHECK(x.dim() == 1, "fusedrnn: expected x of 1 dimension, got ", shape_of(x));
  const cpu::Type type = type_of(x);
  STD_TORCH_CHECK(type == cpu::kFloat32 || type == cpu::kFloat64, "fusedrnn: expected x of dtype float32 or float64");
  const int64_t n = x.numel();
  const Tensor s = empty<1>(type, {n}), t = empty<1>(type, {n});
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    cpu::kernels_of<T>(isa()).activations(static_cast<const T*>(read(x)), static_cast<T*>(data(s)),
                                          static_cast<T*>(data(t)), n);
  });
  return {s, t};
}

}  // namespace
}  // namespace fusedrnn

#define FUSEDRNN_LAYER                                                                                        \
  "(Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? tokens, " \
  "bool batch_first, bool reverse"
#define FUSEDRNN_DEFINE(m, cell, states)                                                                    \
  m.def(cell FUSEDRNN_LAYER ") -> (Tensor y, " states ")");                                                 \
  m.def(cell "_saving" FUSEDRNN_LAYER                                                                       \
             ", bool recompute) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor c)");            \
  m.def(cell                                                                                                \
        "_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, " \
        "Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? tokens, Tensor y, Tensor saved, Tensor c, "       \
        "bool batch_first, bool reverse, bool need_x, bool need_w) -> (Tensor dx, Tensor dh0, Tensor dc0, " \
        "Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)")
#define FUSEDRNN_IMPLEMENT(m, cell, Cell)                     \
  m.impl(cell, TORCH_BOX(&fusedrnn::forward<Cell>));          \
  m.impl(cell "_saving", TORCH_BOX(&fusedrnn::saving<Cell>)); \
  m.impl(cell "_backward", TORCH_BOX(&fusedrnn::backward<Cell>))

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  FUSEDRNN_DEFINE(m, "lstm", "Tensor h_n, Tensor c_n");
  FUSEDRNN_DEFINE(m, "gru", "Tensor h_n");
  FUSEDRNN_DEFINE(m, "rnn_tanh", "Tensor h_n");
  FUSEDRNN_DEFINE(m, "rnn_relu", "Tensor h_n");
  m.def("cpu_isa() -> str");
  m.def("multiply_add(int rounds) -> int");
  m.def("cpu_phases(bool on) -> int[]");
  m.def("cpu_keep_memory(int bytes) -> ()");
  m.def("activations(Tensor x) -> (Tensor sigmoid, Tensor tanh)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  FUSEDRNN_IMPLEMENT(m, "lstm", fusedrnn::Lstm);
  FUSEDRNN_IMPLEMENT(m, "gru", fusedrnn::Gru);
  FUSEDRNN_IMPLEMENT(m, "rnn_tanh", fusedrnn::RnnTanh);
  FUSEDRNN_IMPLEMENT(m, "rnn_relu", fusedrnn::RnnRelu);
  m.impl("activations", TORCH_BOX(&fusedrnn::activations));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fusedrnn::cpu_isa));
  m.impl("multiply_add", TORCH_BOX(&fusedrnn::multiply_add));
  m.impl("cpu_phases", TORCH_BOX(&fusedrnn::cpu_phases));
  m.impl("cpu_keep_memory", TORCH_BOX(&fusedrnn::cpu_keep_memory));
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
