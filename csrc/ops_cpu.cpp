// The CPU side of the operators: allocation and the call of the layer. The only file with CPython's headers; its
// limited API and LibTorch's stable ABI let one binary serve many versions of both.
#include <Python.h>

#include <algorithm>
#include <cstring>
#include <numeric>
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
constexpr int64_t kWorthPooling = 128 << 10;

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

// The layer's view of a tensor of one row per step and batch entry, or of the rows of one step, or of a packed
// sequence; nothing when it has no elements. An index is for tensors that are not packed though the sequence is.
cpu::Stored rows_of(const Tensor& t, const cpu::Layer& a, bool batch_first, const int64_t* index = nullptr) {
  const bool none = t.numel() == 0;
  if (none) return {nullptr, a.type, 0, 0};
  void* p = const_cast<void*>(read(t));
  if (t.dim() == 2) return {p, a.type, a.B * t.stride(0), t.stride(0)};
  return {p, a.type, t.stride(batch_first ? 1 : 0), t.stride(batch_first ? 0 : 1), index};
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

// What the kernels see otherwise than the tensors have it: padded entries that end early as a packed sequence.
struct Packing {
  std::vector<int64_t> offsets, order, index, tokens;
  std::vector<uint8_t> resets;

  // Values of [T, B] or [B, T], in the order of the packed sequence.
  template <class T>
  std::vector<T> packed(const Tensor& padded, bool batch_first, int64_t T_, int64_t B) const {
    std::vector<T> all;
    all.reserve(index.size());
    const T* from = static_cast<const T*>(read(padded));
    for (const int64_t i : index) all.push_back(from[batch_first ? i % B * T_ + i / B : i]);
    return all;
  }
};

void check_range(const int64_t* p, int64_t n, int64_t V) {
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < V, "fusedrnn: expected tokens from 0 to ", V - 1,
                    ", the rows of the table, got ", p[i]);
}

void pack_batch_sizes(const Inputs& in, cpu::Layer& a, Packing& packing) {
  const auto* sizes = static_cast<const int64_t*>(read(*in.batch_sizes));
  packing.offsets.resize(size_t(in.T) + 1);
  std::partial_sum(sizes, sizes + in.T, packing.offsets.begin() + 1);
  a.offsets = packing.offsets.data();
}

void pack_lengths(Inputs& in, cpu::Layer& a, Packing& packing) {
  in.check_place("lengths", *in.lengths);
  in.check_integers("lengths", *in.lengths, 1);
  STD_TORCH_CHECK(!in.one_step && in.lengths->size(0) == in.B, "fusedrnn: expected lengths of shape ", shape_of({in.B}),
                  ", got ", shape_of(*in.lengths));
  in.lengths = dense(*in.lengths);
  const auto* lengths = static_cast<const int64_t*>(read(*in.lengths));
  for (int64_t b = 0; b < in.B; ++b)
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= in.T, "fusedrnn: expected lengths from 0 to ", in.T, ", got ",
                    lengths[b]);
  packing.order.resize(size_t(in.B));
  std::iota(packing.order.begin(), packing.order.end(), 0);
  std::stable_sort(packing.order.begin(), packing.order.end(),
                   [&](int64_t i, int64_t j) { return lengths[i] > lengths[j]; });
  a.T = in.B > 0 ? lengths[packing.order[0]] : 0;
  packing.index.resize(size_t(std::accumulate(lengths, lengths + in.B, int64_t(0))));
  packing.offsets.push_back(0);
  int64_t* next = packing.index.data();
  for (int64_t t = 0, rows = in.B; t < a.T; ++t) {
    while (lengths[packing.order[size_t(rows - 1)]] <= t) --rows;
    for (int64_t b = 0; b < rows; ++b) *next++ = t * in.B + packing.order[size_t(b)];
    packing.offsets.push_back(next - packing.index.data());
  }
  a.offsets = packing.offsets.data(), a.order = packing.order.data();
}

// Zeros for the steps of entries that are over.
void zero_after_end(const Inputs& in, const cpu::Stored& s, int64_t columns) {
  if (!in.lengths || !s.p) return;
  const auto* lengths = static_cast<const int64_t*>(read(*in.lengths));
  const int64_t size = cpu::size_of(s.type);
  for (int64_t b = 0; b < in.B; ++b)
    for (int64_t t = lengths[b]; t < in.T; ++t)
      std::memset(static_cast<char*>(s.p) + (t * s.step + b * s.row) * size, 0, size_t(columns * size));
}

// The arguments of the layer in `a`, once they are checked.
template <class Cell>
void fill(Inputs& in, cpu::Layer& a, Packing& packing) {
  in.fill<Cell>();
  a.kind = Cell::kKind, a.type = type_of(in.dtype), a.reverse = in.reverse;
  a.T = in.T, a.B = in.B, a.I = in.I, a.H = in.H, a.V = in.V;
  if (in.batch_sizes) pack_batch_sizes(in, a, packing);
  if (in.lengths) pack_lengths(in, a, packing);
  const bool batch_first = in.batch_first && !a.offsets;  // of values that are not rows
  const int64_t step = batch_first ? 1 : a.B, row = batch_first ? in.T : 1;
  if (in.tokens) {
    if (in.lengths) packing.tokens = packing.packed<int64_t>(*in.tokens, in.batch_first, in.T, in.B);
    static constexpr int64_t kNone = 0;  // not null, which would say that x has a row per step
    const int64_t n = in.lengths ? int64_t(packing.tokens.size()) : in.tokens->numel();
    const auto* p = in.lengths ? packing.tokens.data() : static_cast<const int64_t*>(read(*in.tokens));
    check_range(p, n, in.V);
    a.x = {const_cast<void*>(read(in.x)), a.type, 0, a.I};
    a.tokens = {n > 0 ? p : &kNone, step, row};
  } else {
    a.x = rows_of(in.x, a, in.batch_first, packing.index.data());
  }
  if (in.resets) {
    if (in.lengths) packing.resets = packing.packed<uint8_t>(*in.resets, in.batch_first, in.T, in.B);
    a.resets = {in.lengths ? packing.resets.data() : static_cast<const uint8_t*>(read(*in.resets)), step, row};
  }
  a.h0 = read(in.h0), a.c0 = read(in.c0), a.w_ih = read(in.w_ih), a.w_hh = read(in.w_hh);
  a.b_ih = read(in.b_ih), a.b_hh = read(in.b_hh);
}

int64_t total_rows(const cpu::Layer& a) { return a.offsets ? a.offsets[a.T] : a.T * a.B; }

// Puts the rows that tokens pick, with time first, in the place of the table, which has more: they cost less to
// project.
void pick_rows(Inputs& in, cpu::Layer& a) {
  const int64_t n = total_rows(a);
  const Tensor rows = in.empty<2>({n, a.I});
  const auto* from = static_cast<const char*>(read(in.x));
  auto* to = static_cast<char*>(data(rows));
  const size_t bytes = size_t(a.I * cpu::size_of(a.type));
  for (int64_t i = 0; bytes && i < n; ++i)
    std::memcpy(to + size_t(i) * bytes, from + size_t(*a.tokens.at(i / a.B, i % a.B)) * bytes, bytes);
  in.x = rows, a.x = rows_of(rows, a, false), a.tokens = {}, a.V = 0;
}

// Runs a layer whose y and states are filled in, of which c is kept where it has one.
void run_forward(const Inputs& in, cpu::LayerForward& a, const Tensor& y, const Packing& packing) {
  a.y = rows_of(y, a, in.batch_first, packing.index.data());
  run(a);
  zero_after_end(in, a.y, a.H), zero_after_end(in, a.c, a.H);
}

template <class Cell>
States<Cell> forward(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                     const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                     bool batch_first, bool reverse, const MaybeTensor& batch_sizes, const MaybeTensor& lengths,
                     const MaybeTensor& resets) {
  cpu::LayerForward a{};
  Packing packing;
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in, a, packing);
  if (tokens && total_rows(a) <= a.V) pick_rows(in, a);
  const Tensor y = in.per_row(a.H), h_n = in.new_state();
  a.h_n = data(h_n);
  if constexpr (Cell::kHasCellState) {
    const Tensor c_n = in.new_state();
    a.c_n = data(c_n);
    run_forward(in, a, y, packing);
    return {y, h_n, c_n};
  } else {
    run_forward(in, a, y, packing);
    return {y, h_n};
  }
}

// What only backward sees, with time first. With lengths the gates are packed, and zeros follow them.
Tensor new_kept(const Inputs& in, int64_t columns) {
  return in.batch_sizes ? pooled<2>(in, {in.rows, columns}) : pooled<3>(in, {in.T, in.B, columns});
}

template <class Cell>
SavingResult saving(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                    const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                    bool batch_first, bool reverse, bool recompute, const MaybeTensor& batch_sizes,
                    const MaybeTensor& lengths, const MaybeTensor& resets, int64_t) {
  cpu::LayerForward a{};
  Packing packing;
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in, a, packing);
  const Tensor y = in.per_row(a.H), h_n = in.new_state(), c_n = Cell::kHasCellState ? in.new_state() : in.nothing();
  const Tensor saved = !recompute && Cell::kSaved ? new_kept(in, Cell::kSaved * a.H) : in.nothing();
  const Tensor c = Cell::kHasCellState ? new_kept(in, a.H) : in.nothing();
  a.saved = {data(saved), a.type, a.B * Cell::kSaved * a.H, Cell::kSaved * a.H};
  a.c = rows_of(c, a, false, packing.index.data());
  a.h_n = data(h_n), a.c_n = data(c_n);
  run_forward(in, a, y, packing);
  if (const int64_t used = total_rows(a) * a.saved.row * cpu::size_of(a.type); a.saved.p && lengths)
    std::memset(static_cast<char*>(a.saved.p) + used, 0, size_t(saved.numel() * cpu::size_of(a.type) - used));
  return {y, h_n, c_n, saved, c};
}

template <class Cell>
BackwardResult backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n, const Tensor& x,
                        const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens, const Tensor& y,
                        const Tensor& saved, const Tensor& c, bool batch_first, bool reverse, bool need_x, bool need_w,
                        const MaybeTensor& batch_sizes, const MaybeTensor& lengths, const MaybeTensor& resets,
                        int64_t detach_every, const MaybeTensor& dc) {
  STD_TORCH_CHECK(detach_every >= 0 && !(detach_every && reverse),
                  "fusedrnn: expected detach_every of 0 or more, and 0 in reverse, got ", detach_every);
  cpu::LayerBackward a{};
  Packing packing;
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in, a, packing);
  Gradients g{dy, dh_n, dc_n, dc, y, saved, c};
  g.fill<Cell>(in);
  const int64_t* index = packing.index.data();
  a.y = rows_of(g.y, a, batch_first, index), a.c = rows_of(g.c, a, false, index);
  a.saved = {data(g.saved), a.type, a.B * Cell::kSaved * a.H, Cell::kSaved * a.H};
  if (g.dy) a.dy = rows_of(*g.dy, a, batch_first, index);
  if (g.dc) a.dc = rows_of(*g.dc, a, false, index);
  a.dh_n = read(g.dh_n), a.dc_n = read(g.dc_n), a.detach_every = detach_every;

  BackwardResult results = new_gradients<Cell>(in, need_x, need_w);
  const auto& [dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh] = results;
  if (need_x) a.dx = tokens ? cpu::Stored{data(dx), a.type, 0, a.I} : rows_of(dx, a, batch_first, index);
  a.dh0 = data(dh0), a.dc0 = data(dc0), a.dw_ih = data(dw_ih), a.dw_hh = data(dw_hh);
  a.db_ih = data(db_ih), a.db_hh = data(db_hh);
  run(a);
  if (!tokens) zero_after_end(in, a.dx, a.I);
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
