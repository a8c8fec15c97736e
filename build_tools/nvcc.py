"""How the CUDA kernels are compiled where no library is made of them: for which architectures, with which flags, and
what ptxas says that each kernel takes."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flags import CUDA_KERNEL

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
FLAGS = [
    *shlex.split(CUDA_KERNEL),
    "-Werror",
    "all-warnings",
    "-Xptxas",
    "-v,-warn-spills,-warn-lmem-usage,-Werror",
    "-cubin",
]

_KERNEL = re.compile(r"Compiling entry function '(\w+)'.*?Used (\d+) registers([^\n]*)", re.DOTALL)
_SHARED = re.compile(r"(\d+) bytes smem")


class CompileError(Exception):
    """Its text is what the compiler complains about."""


@dataclass(frozen=True)
class Resources:
    registers: int
    static_shared: int


def compile_cubin(source: Path, architecture: int, to: Path, flags: Sequence[str] = ()) -> dict[str, Resources]:
    """What each kernel takes, by its mangled name."""
    command = ["nvcc", *FLAGS, *flags, f"-arch=sm_{architecture}", str(source), "-o", str(to)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith(("ptxas info", "    "))]
        raise CompileError("\n".join(said))
    return resources(done.stdout)


def resources(ptxas: str) -> dict[str, Resources]:
    kernels = {}
    for name, registers, rest in _KERNEL.findall(ptxas):
        shared = _SHARED.search(rest)
        kernels[name] = Resources(int(registers), int(shared[1]) if shared else 0)
    return kernels
