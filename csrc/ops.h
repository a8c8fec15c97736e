// What the operators' glue for each device shares: their schemas, the checks of what they are given and the shapes of
// what they return. Built on LibTorch's stable ABI, so that one binary serves many versions of torch.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace fusedrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---------------------------------------------------------------------------------------------- tensors

// Where a tensor is, as torch's C functions count devices.
struct Place {
  int32_t type, index;

  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
};

inline Place place_of(const Tensor& t) {
  Place place{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &place.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &place.index));
  return place;
}

inline int32_t code_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return aoti_torch_dtype_float64();
    case ScalarType::BFloat16: return aoti_torch_dtype_bfloat16();
    case ScalarType::Half: return aoti_torch_dtype_float16();
    case ScalarType::Byte: return aoti_torch_dtype_uint8();
    case ScalarType::Long: return aoti_torch_dtype_int64();
    default: return aoti_torch_dtype_float32();
  }
}

template <size_t N>
std::array<int64_t, N> dense_strides(const std::array<int64_t, N>& sizes) {
  std::array<int64_t, N> strides;
  int64_t stride = 1;
  for (size_t i = N; i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  return strides;
}

template <size_t N>
Tensor new_tensor(const Place& place, ScalarType dtype, const std::array<int64_t, N>& sizes) {
  const auto strides = dense_strides(sizes);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(N, sizes.data(), strides.data(), code_of(dtype), place.type, place.index, &handle));
  return Tensor(handle);
}

inline void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }
inline const void* read(const Tensor& t) { return t.const_data_ptr(); }
inline const void* read(const MaybeTensor& t) { return t ? read(*t) : nullptr; }

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline MaybeTensor dense(const MaybeTensor& t) { return t ? MaybeTensor(dense(*t)) : t; }

// Any layout in which the values of a row are neighbours.
inline Tensor dense_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}
inline MaybeTensor dense_rows(const MaybeTensor& t) { return t ? MaybeTensor(dense_rows(*t)) : t; }

// ---------------------------------------------------------------------------------------------- checks

inline std::string shape_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline std::string shape_of(std::initializer_list<int64_t> sizes) {
  std::string s = "[";
  for (const int64_t n : sizes) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
  return s + "]";
}

// What an operator is given, checked and made dense.
struct Inputs {
  Tensor x;
  MaybeTensor h0, c0;
  Tensor w_ih, w_hh;
  MaybeTensor b_ih, b_hh, tokens;
  bool batch_first, reverse;
  MaybeTensor batch_sizes, lengths, resets;

  // Read from the tensors by fill().
  Place place{};
  ScalarType dtype{};
  int64_t T = 0, B = 0, I = 0, H = 0, V = 0;  // with tokens, x is a table of V rows
  int64_t rows = 0;                           // of a packed sequence: x is [rows, I]
  bool one_step = false;                      // x is [B, I] or tokens are [B], y and dy are [B, H]
  bool layered = false;  // states are [1, B, H] instead of [B, H], and so are those that are returned

  void check_place(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(place_of(t) == place, "fusedrnn: expected ", name, " on the ",
                    place.type == aoti_torch_device_type_cpu() ? "CPU" : "device", ", as x is");
  }
  void check(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes) const {
    check_place(name, t);
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
  void check(const char* name, const MaybeTensor& t, std::initializer_list<int64_t> sizes) const {
    if (t) check(name, *t, sizes);
  }
  void check_state(const char* name, const MaybeTensor& t) const {
    layered ? check(name, t, {1, B, H}) : check(name, t, {B, H});
  }
  void check_rows(const char* name, const MaybeTensor& t, int64_t columns) const {
    batch_sizes   ? check(name, t, {rows, columns})
    : one_step    ? check(name, t, {B, columns})
    : batch_first ? check(name, t, {B, T, columns})
                  : check(name, t, {T, B, columns});
  }
  // Of what is kept for backward, with time first.
  void check_kept(const char* name, const Tensor& t, int64_t columns) const {
    batch_sizes ? check(name, t, {rows, columns}) : check(name, t, {T, B, columns});
  }
  static void check_integers(const char* name, const Tensor& t, int64_t dim) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, "fusedrnn: expected ", name, " of dtype int64, got ",
                    torch::headeronly::toString(t.scalar_type()));
    STD_TORCH_CHECK(t.dim() == dim, "fusedrnn: expected ", name, " of ", dim, dim == 1 ? " dimension" : " dimensions",
                    ", got ", shape_of(t));
  }
  void check_resets() const {
    check_place("resets", *resets);
    STD_TORCH_CHECK(resets->scalar_type() == ScalarType::Bool, "fusedrnn: expected resets of dtype bool, got ",
                    torch::headeronly::toString(resets->scalar_type()));
    const int64_t outer = batch_sizes ? rows : batch_first ? B : T, inner = batch_first ? T : B;
    const bool same =
        resets->dim() == (batch_sizes ? 1 : 2) && resets->size(0) == outer && (batch_sizes || resets->size(1) == inner);
    STD_TORCH_CHECK(same, "fusedrnn: expected resets of shape ",
                    batch_sizes ? shape_of({outer}) : shape_of({outer, inner}), ", got ", shape_of(*resets));
  }
  // Sets T, B and rows of a packed sequence.
  void read_batch_sizes(const Tensor& packed) {
    STD_TORCH_CHECK(place_of(*batch_sizes).type == aoti_torch_device_type_cpu(),
                    "fusedrnn: expected batch_sizes on the CPU");
    STD_TORCH_CHECK(!lengths, "fusedrnn: expected batch_sizes or lengths, not both");
    check_integers("batch_sizes", *batch_sizes, 1);
    batch_sizes = dense(*batch_sizes);
    const auto* sizes = static_cast<const int64_t*>(read(*batch_sizes));
    T = batch_sizes->numel(), B = T > 0 ? sizes[0] : 0, rows = packed.size(0);
    int64_t sum = 0;
    for (int64_t t = 0; t < T; sum += sizes[t++])
      STD_TORCH_CHECK(sizes[t] > 0 && sizes[t] <= sizes[t > 0 ? t - 1 : 0],
                      "fusedrnn: expected batch_sizes that are positive and do not increase, got ", sizes[t],
                      " for step ", t);
    STD_TORCH_CHECK(sum == rows, "fusedrnn: expected batch_sizes of sum ", rows, ", the rows of x, got ", sum);
  }

  template <size_t N>
  Tensor empty(const std::array<int64_t, N>& sizes) const {
    return new_tensor(place, dtype, sizes);
  }
  Tensor nothing() const { return empty<1>({0}); }
  Tensor new_state() const { return layered ? empty<3>({1, B, H}) : empty<2>({B, H}); }
  // A result with one row per step and batch entry, in the layout of x.
  Tensor per_row(int64_t columns) const {
    return batch_sizes   ? empty<2>({rows, columns})
           : one_step    ? empty<2>({B, columns})
           : batch_first ? empty<3>({B, T, columns})
                         : empty<3>({T, B, columns});
  }

  template <class Cell>
  void fill() {
    dtype = x.scalar_type(), place = place_of(x);
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                        dtype == ScalarType::Half,
                    "fusedrnn: expected x of dtype float32, float64, bfloat16 or float16, got ",
                    torch::headeronly::toString(dtype));
    one_step = !batch_sizes && (tokens ? tokens->dim() == 1 : x.dim() == 2);
    const int dims = tokens || batch_sizes || one_step ? 2 : 3;
    STD_TORCH_CHECK(x.dim() == dims, "fusedrnn: expected x of ", dims, " dimensions, got ", shape_of(x));
    STD_TORCH_CHECK(w_hh.dim() == 2, "fusedrnn: expected w_hh of 2 dimensions, got ", shape_of(w_hh));
    if (tokens) {
      check_place("tokens", *tokens);
      check_integers("tokens", *tokens, batch_sizes || one_step ? 1 : 2);
      tokens = dense(*tokens);
    }
    const Tensor& steps = tokens ? *tokens : x;
    if (batch_sizes)
      read_batch_sizes(steps);
    else
      T = one_step ? 1 : steps.size(batch_first ? 1 : 0), B = steps.size(one_step || batch_first ? 0 : 1);
    I = x.size(x.dim() - 1), H = w_hh.size(1), V = tokens ? x.size(0) : 0;
    const int64_t G = Cell::kGates;
    layered = !one_step && (!h0 || h0->dim() == 3);
    check_state("h0", h0);
    STD_TORCH_CHECK(c0.has_value() == (Cell::kHasCellState && h0),
                    "fusedrnn: c0 is for the LSTM, which takes both states or none");
    check_state("c0", c0);
    check("w_ih", w_ih, {G * H, I});
    check("w_hh", w_hh, {G * H, H});
    check("b_ih", b_ih, {G * H});
    check("b_hh", b_hh, {G * H});
    if (resets) {
      check_resets();
      resets = dense(*resets);
    }
    x = tokens ? dense(x) : dense_rows(x), h0 = dense(h0), c0 = dense(c0), w_ih = dense(w_ih), w_hh = dense(w_hh);
    b_ih = dense(b_ih), b_hh = dense(b_hh);
  }
};

// What backward is given besides.
struct Gradients {
  MaybeTensor dy, dh_n, dc_n, dc;
  Tensor y, saved, c;
  bool recompute = false;  // saved was left out

  template <class Cell>
  void fill(const Inputs& in) {
    in.check_rows("dy", dy, in.H);
    in.check_state("dh_n", dh_n);
    in.check_state("dc_n", dc_n);
    in.check_rows("y", y, in.H);
    recompute = Cell::kSaved && saved.dim() == 1 && saved.numel() == 0;
    if (Cell::kSaved && !recompute) in.check_kept("saved", saved, Cell::kSaved * in.H);
    if (Cell::kHasCellState) in.check_kept("c", c, in.H);
    STD_TORCH_CHECK(Cell::kHasCellState || !dc, "fusedrnn: dc is for the LSTM");
    if (dc) in.check_kept("dc", *dc, in.H), dc = dense_rows(*dc);
    y = dense_rows(y), saved = dense(saved), c = dense(c);
    dy = dense_rows(dy), dh_n = dense(dh_n), dc_n = dense(dc_n);
  }
};

// ---------------------------------------------------------------------------------------------- results

// y, h_n, for the LSTM c_n.
template <class Cell>
using States = std::conditional_t<Cell::kHasCellState, std::tuple<Tensor, Tensor, Tensor>, std::tuple<Tensor, Tensor>>;
// y, h_n, c_n, saved, c.
using SavingResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Cell>
BackwardResult new_gradients(const Inputs& in, bool need_x, bool need_w) {
  const int64_t rows = Cell::kGates * in.H;
  const auto state = [&](const MaybeTensor& t) { return t ? in.new_state() : in.nothing(); };
  const auto weight = [&](int64_t columns) { return need_w ? in.empty<2>({rows, columns}) : in.nothing(); };
  const auto bias = [&](const MaybeTensor& b) { return in.empty<1>({need_w && b ? rows : 0}); };
  Tensor dx = !need_x ? in.nothing() : in.tokens ? in.empty<2>({in.V, in.I}) : in.per_row(in.I);
  return {dx, state(in.h0), state(in.c0), weight(in.I), weight(in.H), bias(in.b_ih), bias(in.b_hh)};
}

}  // namespace fusedrnn

// ---------------------------------------------------------------------------------------------- operators

#define FUSEDRNN_LAYER                                                                                        \
  "(Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? tokens, " \
  "bool batch_first, bool reverse"
#define FUSEDRNN_MASKS ", Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? resets=None"
#define FUSEDRNN_DEFINE(m, cell, states)                                                                    \
  m.def(cell FUSEDRNN_LAYER FUSEDRNN_MASKS ") -> (Tensor y, " states ")");                                  \
  m.def(cell "_saving" FUSEDRNN_LAYER ", bool recompute" FUSEDRNN_MASKS                                     \
             ", int detach_every=0) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor c)");        \
  m.def(cell                                                                                                \
        "_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, " \
        "Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? tokens, Tensor y, Tensor saved, Tensor c, "       \
        "bool batch_first, bool reverse, bool need_x, bool need_w" FUSEDRNN_MASKS                           \
        ", int detach_every=0, Tensor? dc=None) -> (Tensor dx, Tensor dh0, Tensor dc0, "                    \
        "Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)")
#define FUSEDRNN_DEFINE_ALL(m)                          \
  FUSEDRNN_DEFINE(m, "lstm", "Tensor h_n, Tensor c_n"); \
  FUSEDRNN_DEFINE(m, "gru", "Tensor h_n");              \
  FUSEDRNN_DEFINE(m, "rnn_tanh", "Tensor h_n");         \
  FUSEDRNN_DEFINE(m, "rnn_relu", "Tensor h_n")

// Of a device's templates forward, saving and backward.
#define FUSEDRNN_IMPLEMENT(m, cell, Cell)                     \
  m.impl(cell, TORCH_BOX(&fusedrnn::forward<Cell>));          \
  m.impl(cell "_saving", TORCH_BOX(&fusedrnn::saving<Cell>)); \
  m.impl(cell "_backward", TORCH_BOX(&fusedrnn::backward<Cell>))
#define FUSEDRNN_IMPLEMENT_ALL(m)                       \
  FUSEDRNN_IMPLEMENT(m, "lstm", fusedrnn::Lstm);        \
  FUSEDRNN_IMPLEMENT(m, "gru", fusedrnn::Gru);          \
  FUSEDRNN_IMPLEMENT(m, "rnn_tanh", fusedrnn::RnnTanh); \
  FUSEDRNN_IMPLEMENT(m, "rnn_relu", fusedrnn::RnnRelu)
