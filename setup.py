"""What is compiled. Flags are in build_tools/flags.py, as is the list of sources without torch; metadata is in
pyproject.toml, the machinery in build_tools/.

Environment: CXX, CPPFLAGS, CXXFLAGS and LDFLAGS as usual; MAX_JOBS limits parallel compiles; FUSEDRNN_TORCH_PYTHON
names the Python whose torch to build against; FUSEDRNN_CUDA and TORCH_CUDA_ARCH_LIST are for the CUDA kernels, see
build_tools/cuda_toolkit.py.
"""

import platform
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "build_tools"))

from flags import COMMON, cpu_sources, cuda_sources
from ninja_ext import NinjaBuildExt, NinjaExtension, Source

# The oldest torch (2.11) and Python (3.10) that the library runs with.
GLUE = f"{COMMON} -std=c++17 -O2 -DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"

CPU = [
    *(Source(path, flags) for path, flags in cpu_sources(platform.machine()).items()),
    Source("csrc/ops_cpu.cpp", GLUE, torch=True),
]
# USE_CUDA shows the parts of torch's C interface that its CUDA builds have.
CUDA = [
    *(Source(path, flags) for path, flags in cuda_sources(Path(__file__).parent).items()),
    Source("csrc/ops_cuda.cpp", f"{GLUE} -DUSE_CUDA", torch=True),
]

setup(
    ext_modules=[
        NinjaExtension("fusedrnn._C", CPU, libraries=["torch_cpu", "c10"]),
        NinjaExtension("fusedrnn._C_cuda", CUDA, libraries=["torch_cuda", "torch_cpu", "c10"], cuda=True),
    ],
    cmdclass={"build_ext": NinjaBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
