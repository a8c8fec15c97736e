// For the one file of a module that Python sees, which must not be instrumented:
//
//   PYBIND11_MODULE(emulated, m) {
//     emulator::bind(m);
//     emulator::bind_launch(m, "axpy", &axpy);
//   }
//
// where axpy is a function of another file that launches kernels: its pointers are device memory, given as numbers.
#pragma once
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstring>

#include "control.h"

namespace emulator {

namespace py = pybind11;

inline size_t bytes_of(const py::buffer_info& info) { return size_t(info.size * info.itemsize); }

inline void bind(py::module_& m) {
  m.def("allocate", [](size_t bytes) { return reinterpret_cast<uintptr_t>(allocate(bytes)); });
  m.def("free", [](uintptr_t p) { release_allocation(reinterpret_cast<void*>(p)); });
  m.def("upload", [](uintptr_t to, const py::buffer& from) {
    const py::buffer_info info = from.request();
    upload(reinterpret_cast<void*>(to), info.ptr, bytes_of(info));
  });
  m.def("download", [](const py::buffer& to, uintptr_t from) {
    const py::buffer_info info = to.request(true);
    std::memcpy(info.ptr, reinterpret_cast<const void*>(from), bytes_of(info));
  });
  m.def("set_schedule", [](int order, unsigned seed, unsigned preempt) { schedule = {Order(order), seed, preempt}; });
  m.def("take_reports", [] {
    py::list all;
    for (const Report& r : take_reports()) all.append(py::make_tuple(r.kind, r.file, r.line, r.message));
    return all;
  });
}

template <class P>
struct Passed {
  using Type = P;
  static P value(P v) { return v; }
};
template <class T>
struct Passed<T*> {
  using Type = uintptr_t;
  static T* value(uintptr_t v) { return reinterpret_cast<T*>(v); }
};

template <class... P>
void bind_launch(py::module_& m, const char* name, cudaError_t (*f)(P...)) {
  m.def(name, [f](typename Passed<P>::Type... a) { return int(f(Passed<P>::value(a)...)); });
}

}  // namespace emulator
