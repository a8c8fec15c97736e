"""What is compiled and with which flags. Metadata is in pyproject.toml, the machinery in build_tools/.

Environment: CXX, CPPFLAGS, CXXFLAGS and LDFLAGS as usual; MAX_JOBS limits parallel compiles; FUSEDRNN_TORCH_PYTHON
names the Python whose torch to build against; FUSEDRNN_CUDA=1 fails where CUDA kernels cannot be built.
"""

import platform
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "build_tools"))

from ninja_ext import NinjaBuildExt, NinjaExtension, Source

X86 = platform.machine() in ("x86_64", "AMD64")

COMMON = "-DNDEBUG -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra"
# The oldest torch (2.11) and Python (3.10) that the library runs with.
GLUE = f"{COMMON} -std=c++17 -O2 -DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"
DISPATCH = f"{COMMON} -std=c++17 -O2" + (" -DFUSEDRNN_X86=1" if X86 else "")
KERNEL = f"{COMMON} -std=gnu++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi"
AVX2 = f"{KERNEL} -mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"

# The slowest to compile come first, so that no core waits for one of them at the end.
SOURCES = [
    *([Source("csrc/cpu/isa_avx512.cpp", AVX512), Source("csrc/cpu/isa_avx2.cpp", AVX2)] if X86 else []),
    Source("csrc/cpu/isa_baseline.cpp", KERNEL),
    Source("csrc/cpu/dispatch.cpp", DISPATCH),
    Source("csrc/cpu/layer.cpp", DISPATCH),
    Source("csrc/ops_cpu.cpp", GLUE, torch=True),
]

setup(
    ext_modules=[NinjaExtension("fusedrnn._C", SOURCES, libraries=["torch_cpu", "c10"])],
    cmdclass={"build_ext": NinjaBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
