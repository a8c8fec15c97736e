"""Flags, and the sources that hold no torch with theirs: for the build, and for tests that compile on their own."""

from __future__ import annotations

from pathlib import Path

COMMON = "-DNDEBUG -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra"
HOST = f"{COMMON} -std=c++17 -O2"
# The oldest torch (2.11) and Python (3.10) that the library runs with.
TORCH_API = "-DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"
# With the parts of torch's C interface that its CUDA builds have.
CUDA_TORCH_API = f"{TORCH_API} -DUSE_CUDA"
GLUE = f"{HOST} {TORCH_API}"
CUDA_GLUE = f"{HOST} {CUDA_TORCH_API}"
KERNEL = f"{COMMON} -std=gnu++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi"
AVX2 = f"{KERNEL} -mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"


def cpu_sources(machine: str) -> dict[str, str]:
    """Flags by path, for a processor as platform.machine() names it.

    The slowest to compile come first, so that no core waits for one of them at the end.
    """
    x86 = machine in ("x86_64", "AMD64")
    dispatch = HOST + (" -DFUSEDRNN_X86=1" if x86 else "")
    return {
        **({"csrc/cpu/isa_avx512.cpp": AVX512, "csrc/cpu/isa_avx2.cpp": AVX2} if x86 else {}),
        "csrc/cpu/isa_baseline.cpp": KERNEL,
        "csrc/cpu/dispatch.cpp": dispatch,
        "csrc/cpu/layer.cpp": dispatch,
    }


# nvcc's.
CUDA_KERNEL = "-std=c++17 -O3 -DNDEBUG -Xcompiler -fvisibility=hidden"


def cuda_sources(root: Path) -> dict[str, str]:
    """Flags by path: the kernels, the slowest to compile first, and the layer that is made of them."""
    kernels = sorted(root.glob("csrc/cuda/*.cu"), key=lambda path: (not path.name.startswith("grid_"), path.name))
    return {
        **{str(path.relative_to(root)): CUDA_KERNEL for path in kernels},
        "csrc/cuda/layer.cpp": HOST,
        "csrc/cuda/blas.cpp": HOST,
    }
