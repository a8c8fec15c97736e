// The CPU side of the operators: allocation and the call of the layer. The only file with CPython's headers; its
// limited API and LibTorch's stable ABI let one binary serve many versions of both.
#include <Python.h>

#include <cstring>
#include <vector>

#include "cpu/layer.h"
#include "ops.h"
#include "workspace.h"

namespace fusedrnn {
namespace {

const cpu::Isa& isa() {
  const char* error = nullptr;
  const cpu::Isa* isa = cpu::selected_isa(&error);
  STD_TORCH_CHECK(isa, error);
  return *isa;
}

// ---------------------------------------------------------------------------------------------- tensors

cpu::Type type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return cpu::kFloat64;
    case ScalarType::BFloat16: return cpu::kBFloat16;
    case ScalarType::Half: return cpu::kFloat16;
    default: return cpu::kFloat32;
  }
}

// f(T(0)) with the type that kernels compute in.
template <class F>
auto with_compute_type(cpu::Type type, const F& f) {
  return type == cpu::kFloat64 ? f(0.0) : f(0.0f);
}

// Tensors that only backward sees: of this size and more they come from the pool.
constexpr int64_t kWorthPooling = 1 << 20;

template <size_t N>
Tensor pooled(const Inputs& in, const std::array<int64_t, N>& sizes) {
  const auto strides = dense_strides(sizes);
  const int64_t bytes = strides[0] * std::max<int64_t>(sizes[0], 1) * cpu::size_of(type_of(in.dtype));
  if (bytes < kWorthPooling) return in.empty(sizes);
  void* p = Pool::instance().take(size_t(bytes));
  STD_TORCH_CHECK(p, "fusedrnn: no memory left for ", bytes, " bytes");
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
      p, N, sizes.data(), strides.data(), 0, code_of(in.dtype), aoti_torch_device_type_cpu(), -1, &handle,
      aoti_torch_layout_strided(), nullptr, 0, [](void* p, void*) { Pool::instance().give(p); }, nullptr));
  return Tensor(handle);
}

// A tensor of one row per step and batch entry, or of the rows of one step, as the kernels see it; nothing when it has
// no elements.
cpu::Stored rows_of(const Tensor& t, cpu::Type type, bool batch_first) {
  const bool none = t.dim() < 2;
  if (none) return {nullptr, type, 0, 0};
  if (t.dim() == 2) return {const_cast<void*>(read(t)), type, t.size(0) * t.stride(0), t.stride(0)};
  return {const_cast<void*>(read(t)), type, t.stride(batch_first ? 1 : 0), t.stride(batch_first ? 0 : 1)};
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

// ---------------------------------------------------------------------------------------------- operators

void check_range(const Tensor& tokens, int64_t V) {
  const int64_t* p = static_cast<const int64_t*>(read(tokens));
  for (int64_t i = 0, n = tokens.numel(); i < n; ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < V, "fusedrnn: expected tokens from 0 to ", V - 1,
                    ", the rows of the table, got ", p[i]);
}

// The arguments of the layer in `a`, once they are checked.
template <class Cell>
void fill(Inputs& in, cpu::Layer& a) {
  in.fill<Cell>();
  a.kind = Cell::kKind, a.type = type_of(in.dtype), a.reverse = in.reverse;
  a.T = in.T, a.B = in.B, a.I = in.I, a.H = in.H, a.V = in.V;
  if (in.tokens) {
    check_range(*in.tokens, in.V);
    a.x = {const_cast<void*>(read(in.x)), a.type, 0, a.I};
    static constexpr int64_t kNone = 0;  // not null, which would say that x has a row per step
    const void* p = in.tokens->numel() ? read(*in.tokens) : &kNone;
    a.tokens = {static_cast<const int64_t*>(p), in.batch_first ? 1 : a.B, in.batch_first ? a.T : 1};
  } else {
    a.x = rows_of(in.x, a.type, in.batch_first);
  }
  a.h0 = read(in.h0), a.c0 = read(in.c0), a.w_ih = read(in.w_ih), a.w_hh = read(in.w_hh);
  a.b_ih = read(in.b_ih), a.b_hh = read(in.b_hh);
}

// Puts the rows that tokens pick in the place of the table, which has more: they cost less to project.
void pick_rows(Inputs& in, cpu::Layer& a) {
  const Tensor rows = in.per_row(a.I);
  const auto* ids = static_cast<const int64_t*>(read(*in.tokens));
  const auto* from = static_cast<const char*>(read(in.x));
  auto* to = static_cast<char*>(data(rows));
  const size_t bytes = size_t(a.I * cpu::size_of(a.type));
  for (int64_t i = 0; bytes && i < a.T * a.B; ++i)
    std::memcpy(to + size_t(i) * bytes, from + size_t(ids[i]) * bytes, bytes);
  in.x = rows, a.x = rows_of(rows, a.type, in.batch_first), a.tokens = {}, a.V = 0;
}

template <class Cell>
States<Cell> forward(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                     const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                     bool batch_first, bool reverse) {
  cpu::LayerForward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse};
  fill<Cell>(in, a);
  if (tokens && a.T * a.B <= a.V) pick_rows(in, a);
  const Tensor y = in.per_row(a.H), h_n = in.new_state();
  a.y = rows_of(y, a.type, batch_first), a.h_n = data(h_n);
  if constexpr (Cell::kHasCellState) {
    const Tensor c_n = in.new_state();
    a.c_n = data(c_n);
    run(a);
    return {y, h_n, c_n};
  } else {
    run(a);
    return {y, h_n};
  }
}

template <class Cell>
SavingResult saving(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                    const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                    bool batch_first, bool reverse, bool recompute) {
  cpu::LayerForward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse};
  fill<Cell>(in, a);
  const Tensor y = in.per_row(a.H), h_n = in.new_state(), c_n = Cell::kHasCellState ? in.new_state() : in.nothing();
  const auto kept = [&](bool any, int64_t columns) { return any ? pooled<3>(in, {a.T, a.B, columns}) : in.nothing(); };
  const Tensor saved = kept(!recompute && Cell::kSaved, Cell::kSaved * a.H), c = kept(Cell::kHasCellState, a.H);
  a.y = rows_of(y, a.type, batch_first), a.saved = rows_of(saved, a.type, false), a.c = rows_of(c, a.type, false);
  a.h_n = data(h_n), a.c_n = data(c_n);
  run(a);
  return {y, h_n, c_n, saved, c};
}

template <class Cell>
BackwardResult backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n, const Tensor& x,
                        const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens, const Tensor& y,
                        const Tensor& saved, const Tensor& c, bool batch_first, bool reverse, bool need_x,
                        bool need_w) {
  cpu::LayerBackward a{};
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse};
  fill<Cell>(in, a);
  Gradients g{dy, dh_n, dc_n, y, saved, c};
  g.fill<Cell>(in);
  a.y = rows_of(g.y, a.type, batch_first), a.saved = rows_of(g.saved, a.type, false);
  a.c = rows_of(g.c, a.type, false);
  if (g.dy) a.dy = rows_of(*g.dy, a.type, batch_first);
  a.dh_n = read(g.dh_n), a.dc_n = read(g.dc_n);

  BackwardResult results = new_gradients<Cell>(in, need_x, need_w);
  const auto& [dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh] = results;
  if (need_x) a.dx = tokens ? cpu::Stored{data(dx), a.type, 0, a.I} : rows_of(dx, a.type, batch_first);
  a.dh0 = data(dh0), a.dc0 = data(dc0), a.dw_ih = data(dw_ih), a.dw_hh = data(dw_hh);
  a.db_ih = data(db_ih), a.db_hh = data(db_hh);
  run(a);
  return results;
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
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "fusedrnn: expected x of dtype float32 or float64");
  const cpu::Type type = type_of(dtype);
  const int64_t n = x.numel();
  const Tensor s = new_tensor<1>(place_of(x), dtype, {n}), t = new_tensor<1>(place_of(x), dtype, {n});
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    cpu::kernels_of<T>(isa()).activations(static_cast<const T*>(read(x)), static_cast<T*>(data(s)),
                                          static_cast<T*>(data(t)), n);
  });
  return {s, t};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  FUSEDRNN_DEFINE_ALL(m);
  m.def("cpu_isa() -> str");
  m.def("multiply_add(int rounds) -> int");
  m.def("cpu_phases(bool on) -> int[]");
  m.def("cpu_keep_memory(int bytes) -> ()");
  m.def("activations(Tensor x) -> (Tensor sigmoid, Tensor tanh)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  FUSEDRNN_IMPLEMENT_ALL(m);
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
