#include "emulator/bindings.h"

#include "kernels.h"

PYBIND11_MODULE(emulated, m) {
  emulator::bind(m);
  emulator::bind_launch(m, "run_case", &run_case);
  emulator::bind_launch(m, "multiply_registers", &multiply_registers);
  emulator::bind_launch(m, "load_matrices", &load_matrices);
  emulator::bind_launch(m, "copy_bytes", &copy_bytes);
  emulator::bind_launch(m, "tf32_bits", &tf32_bits);
  emulator::bind_launch(m, "matmul_half", &matmul_half);
  emulator::bind_launch(m, "matmul_bfloat16", &matmul_bfloat16);
  emulator::bind_launch(m, "functions_float", &functions_float);
  emulator::bind_launch(m, "functions_double", &functions_double);
  emulator::bind_launch(m, "cell_step", &cell_step);
  m.def("case_names", [] {
    pybind11::list names;
    for (int i = 0; case_name(i); ++i) names.append(case_name(i));
    return names;
  });
}
