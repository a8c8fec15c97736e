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

from flags import CUDA_GLUE, GLUE, cpu_sources, cuda_sources
from ninja_ext import NinjaBuildExt, NinjaExtension, Source

CPU = [
    *(Source(path, flags) for path, flags in cpu_sources(platform.machine()).items()),
    Source("csrc/ops_cpu.cpp", GLUE, torch=True),
]
CUDA = [
    *(Source(path, flags) for path, flags in cuda_sources(Path(__file__).parent).items()),
    Source("csrc/ops_cuda.cpp", CUDA_GLUE, torch=True),
]

setup(
    ext_modules=[
        NinjaExtension("fusedrnn._C", CPU, libraries=["torch_cpu", "c10"]),
        NinjaExtension("fusedrnn._C_cuda", CUDA, libraries=["torch_cuda", "torch_cpu", "c10"], cuda=True),
    ],
    cmdclass={"build_ext": NinjaBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
