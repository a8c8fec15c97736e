// The CUDA side of the operators: allocation through torch, and the call of the layer on torch's stream and cuBLAS
// handle.
#include <Python.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdlib>
#include <vector>

#include "cuda/layer.h"
#include "ops.h"

namespace fusedrnn {
namespace {

// f(T()) with the type that tensors of dtype hold.
template <class F>
void with_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double: return f(double());
    case ScalarType::Half: return f(__half());
    case ScalarType::BFloat16: return f(__nv_bfloat16());
    default: return f(float());
  }
}

// The device of x is the current one as long as this lives.
class Guard {
 public:
  explicit Guard(const Tensor& x) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(place_of(x).index, &guard_));
  }
  ~Guard() { aoti_torch_delete_cuda_guard(guard_); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  CUDAGuardHandle guard_;
};

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  STD_TORCH_CHECK(error == cudaSuccess, "fusedrnn: cannot ask CUDA device ", device, ": ", cudaGetErrorString(error));
  return value;
}

cuda::Limits limits_of(int device) {
  cuda::Limits limits{};
  limits.sm_count = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  return limits;
}

// Memory of a call. It goes back to torch's allocator at the end of the call, which gives it to later work on the same
// stream only.
struct Memory {
  Place place;
  std::vector<Tensor> blocks;

  static void* allocate(void* owner, size_t bytes) {
    auto& memory = *static_cast<Memory*>(owner);
    memory.blocks.push_back(new_tensor<1>(memory.place, ScalarType::Byte, {int64_t(bytes)}));
    return data(memory.blocks.back());
  }
};

// f(cuda::Device) of this place, for one call.
template <class F>
void with_device(const Place& place, const F& f) {
  Memory memory{place, {}};
  void *blas = nullptr, *stream = nullptr;
  // A thread that has not called CUDA yet, such as one of autograd's, has no context until then, and torch's handles
  // warn of it. The guard does not call where the device is the current one.
  const cudaError_t error = cudaSetDevice(place.index);
  STD_TORCH_CHECK(error == cudaSuccess, "fusedrnn: cannot use CUDA device ", place.index, ": ",
                  cudaGetErrorString(error));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&blas));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place.index, &stream));
  f(cuda::Device{limits_of(place.index), attribute(cudaDevAttrMaxPitch, place.index), std::getenv("FUSEDRNN_ALGORITHM"),
                 blas, static_cast<cudaStream_t>(stream), &Memory::allocate, &memory});
}
template <class Arguments>
void run(const Arguments& a, const Place& place) {
  with_device(place, [&](const cuda::Device& device) { cuda::run_layer(a, device); });
}

// ---------------------------------------------------------------------------------------------- arguments

// Rows that are evenly spaced in the order of the tensor, and by how much.
std::pair<Tensor, int64_t> even_rows(const Tensor& x) {
  const int64_t I = x.size(x.dim() - 1), inner = x.dim() - 2;
  if (x.numel() == 0) return {x, std::max<int64_t>(I, 1)};
  const bool many = x.size(inner) > 1, outer = inner > 0 && x.size(0) > 1;
  const int64_t ld = many ? x.stride(inner) : outer ? x.stride(0) : I;
  const bool even = !(many && outer) || x.stride(0) == x.size(1) * x.stride(1);
  if (even && ld >= I) return {x, ld};
  return {torch::stable::contiguous(x), I};
}

template <class T>
const T* as(const Tensor& t) {
  return static_cast<const T*>(read(t));
}
template <class T>
const T* as(const MaybeTensor& t) {
  return t ? as<T>(*t) : nullptr;
}
template <class T>
T* to(const Tensor& t) {
  return static_cast<T*>(data(t));
}

// The tokens, one after the other, as rows of the table may be asked for.
Tensor tokens_of(const Inputs& in) {
  if (!in.lengths) return torch::stable::flatten(*in.tokens);
  const Tensor counted = new_tensor<1>(in.place, ScalarType::Long, {in.T * in.B});
  const int64_t step = in.batch_first ? 1 : in.B, row = in.batch_first ? in.T : 1;
  with_device(in.place, [&](const cuda::Device& device) {
    const cuda::MaskSources sources{in.T, in.B, {}, as<int64_t>(in.lengths), nullptr, 0};
    cuda::tokens_that_count(sources, {as<int64_t>(in.tokens), step, row}, to<int64_t>(counted), device);
  });
  return counted;
}

// Of the table x, the rows that tokens pick: [T B, I].
Tensor picked_rows(const Inputs& in, const Tensor& tokens) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(in.x), from(int64_t(0)), from(tokens)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The gradient of the table, from that of the rows. In a fixed order: torch sorts the tokens.
Tensor table_gradient(const Inputs& in, const Tensor& tokens, const Tensor& rows) {
  using torch::stable::detail::from;
  std::array<StableIValue, 5> stack{from(rows), from(tokens), from(in.V), from(int64_t(-1)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::embedding_dense_backward", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The rows before each step of a packed sequence; empty where all steps have as many, which is as good as padded.
std::vector<int64_t> offsets_of(const Inputs& in) {
  if (!in.batch_sizes || in.rows == in.T * in.B) return {};
  std::vector<int64_t> offsets{0};
  for (int64_t t = 0; t < in.T; ++t) offsets.push_back(offsets.back() + as<int64_t>(in.batch_sizes)[t]);
  return offsets;
}

template <class Cell>
void fill(Inputs& in) {
  in.fill<Cell>();
  if (!in.lengths) return;
  in.check_place("lengths", *in.lengths);
  in.check_integers("lengths", *in.lengths, 1);
  STD_TORCH_CHECK(!in.one_step && in.lengths->size(0) == in.B, "fusedrnn: expected lengths of shape ", shape_of({in.B}),
                  ", got ", shape_of(*in.lengths));
  in.lengths = dense(*in.lengths);
}

template <class Cell, class T>
void fill(const Inputs& in, const std::pair<Tensor, int64_t>& x, const std::vector<int64_t>& offsets,
          cuda::Layer<T>& a) {
  a.cell = Cell::kKind, a.steps = in.T, a.B = in.B, a.I = in.I, a.H = in.H;
  a.batch_first = in.batch_first && !in.batch_sizes, a.reverse = in.reverse;
  a.x = as<T>(x.first), a.ldx = x.second;
  a.h0 = as<T>(in.h0), a.c0 = as<T>(in.c0), a.w_ih = as<T>(in.w_ih), a.w_hh = as<T>(in.w_hh);
  a.b_ih = as<T>(in.b_ih), a.b_hh = as<T>(in.b_hh);
  a.offsets = offsets.empty() ? nullptr : offsets.data(), a.lengths = as<int64_t>(in.lengths);
  if (!in.resets) return;
  a.resets = {as<unsigned char>(in.resets), a.batch_first ? 1 : in.B, a.batch_first ? in.T : 1};
  if (a.offsets) a.resets = {a.resets.p, 1, 0};
}

// Where rows are of a tensor with one for each step and entry, or for each entry of one step, or packed.
template <class T>
Steps<const T> steps_of(const MaybeTensor& t, const cuda::Layer<T>& a, bool batch_first) {
  if (!t) return {};
  const T* p = as<T>(*t);
  if (t->dim() == 3) return {p, t->stride(batch_first ? 1 : 0), t->stride(batch_first ? 0 : 1)};
  const int64_t ld = t->stride(0);
  return a.offsets ? Steps<const T>{p, ld, 0} : Steps<const T>{p, a.B * ld, ld};
}

// ---------------------------------------------------------------------------------------------- operators

template <class Cell>
void run_forward(const Inputs& in, const Tensor& y, const Tensor& h_n, const Tensor* c_n, const Tensor* saved,
                 const Tensor* c) {
  const auto x = even_rows(in.tokens ? picked_rows(in, tokens_of(in)) : in.x);
  const auto offsets = offsets_of(in);
  with_type(in.dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::LayerForward<T> a{};
    fill<Cell>(in, x, offsets, a);
    a.y = to<T>(y), a.h_n = to<T>(h_n), a.c_n = c_n ? to<T>(*c_n) : nullptr;
    a.saved = saved ? to<T>(*saved) : nullptr, a.c = c ? to<T>(*c) : nullptr;
    run(a, in.place);
  });
}

template <class Cell>
States<Cell> forward(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                     const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                     bool batch_first, bool reverse, const MaybeTensor& batch_sizes, const MaybeTensor& lengths,
                     const MaybeTensor& resets) {
  const Guard guard(x);
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in);
  const Tensor y = in.per_row(in.H), h_n = in.new_state();
  if constexpr (Cell::kHasCellState) {
    const Tensor c_n = in.new_state();
    run_forward<Cell>(in, y, h_n, &c_n, nullptr, nullptr);
    return {y, h_n, c_n};
  } else {
    run_forward<Cell>(in, y, h_n, nullptr, nullptr, nullptr);
    return {y, h_n};
  }
}

template <class Cell>
SavingResult saving(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
                    const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens,
                    bool batch_first, bool reverse, bool recompute, const MaybeTensor& batch_sizes,
                    const MaybeTensor& lengths, const MaybeTensor& resets, int64_t) {
  const Guard guard(x);
  Inputs in{x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in);
  const auto kept = [&](bool any, int64_t columns) {
    if (!any) return in.nothing();
    return batch_sizes ? in.empty<2>({in.rows, columns}) : in.empty<3>({in.T, in.B, columns});
  };
  const Tensor y = in.per_row(in.H), h_n = in.new_state(), c_n = Cell::kHasCellState ? in.new_state() : in.nothing();
  const Tensor saved = kept(!recompute && Cell::kSaved, Cell::kSaved * in.H), c = kept(Cell::kHasCellState, in.H);
  run_forward<Cell>(in, y, h_n, &c_n, &saved, &c);
  return {y, h_n, c_n, saved, c};
}

template <class Cell>
BackwardResult backward(const MaybeTensor& dy, const MaybeTensor& dh_n, const MaybeTensor& dc_n, const Tensor& x_,
                        const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& tokens, const Tensor& y,
                        const Tensor& saved, const Tensor& c, bool batch_first, bool reverse, bool need_x, bool need_w,
                        const MaybeTensor& batch_sizes, const MaybeTensor& lengths, const MaybeTensor& resets,
                        int64_t detach_every, const MaybeTensor& dc) {
  STD_TORCH_CHECK(detach_every >= 0 && !(detach_every && reverse),
                  "fusedrnn: expected detach_every of 0 or more, and 0 in reverse, got ", detach_every);
  const Guard guard(x_);
  Inputs in{x_, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets};
  fill<Cell>(in);
  Gradients g{dy, dh_n, dc_n, dc, y, saved, c};
  g.fill<Cell>(in);
  g.y = dense(g.y);
  const Tensor picked = tokens ? tokens_of(in) : in.nothing();
  const auto x = even_rows(tokens ? picked_rows(in, picked) : in.x);
  const auto offsets = offsets_of(in);
  BackwardResult results = new_gradients<Cell>(in, need_x && !tokens, need_w);
  auto& [dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh] = results;
  const Tensor dx_rows = tokens && need_x ? in.empty<2>({picked.size(0), in.I}) : dx;
  with_type(in.dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::LayerBackward<T> a{};
    fill<Cell>(in, x, offsets, a);
    a.y = as<T>(g.y), a.saved = g.recompute || !Cell::kSaved ? nullptr : as<T>(g.saved);
    a.c = Cell::kHasCellState ? as<T>(g.c) : nullptr;
    a.dy = steps_of(g.dy, a, batch_first), a.dc = steps_of(g.dc, a, false), a.detach_every = detach_every;
    a.dh_n = as<T>(g.dh_n), a.dc_n = as<T>(g.dc_n);
    a.dx = to<T>(dx_rows), a.dh0 = to<T>(std::get<1>(results)), a.dc0 = to<T>(std::get<2>(results));
    a.dw_ih = to<T>(std::get<3>(results)), a.dw_hh = to<T>(std::get<4>(results));
    a.db_ih = to<T>(std::get<5>(results)), a.db_hh = to<T>(std::get<6>(results));
    run(a, in.place);
  });
  if (tokens && need_x) dx = table_gradient(in, picked, dx_rows);
  return results;
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) { FUSEDRNN_IMPLEMENT_ALL(m); }

PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
