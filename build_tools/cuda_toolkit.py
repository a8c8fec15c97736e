"""Finds what the CUDA kernels are compiled with, or says why they are not built.

FUSEDRNN_CUDA is auto (build them where that is possible), 0 (do not) or 1 (fail where it is not). TORCH_CUDA_ARCH_LIST
names architectures as for torch's own extensions ("8.0;9.0+PTX"); without it they are those of the GPUs that are here,
and where there is none, all that fusedrnn is made for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nvcc import ARCHITECTURES
from target_torch import Torch

GUESS = "/usr/local/cuda"


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: str  # "13.0"
    root: Path
    architectures: tuple[str, ...]  # "90" for a kernel of sm_90, "90+PTX" for that and code for what comes after

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def runtime(self) -> Path:
        """The runtime as a static library: torch has loaded one of its own, perhaps of another release."""
        return next(path for path in _runtimes(self.root) if path.exists())

    @property
    def targets(self) -> list[str]:
        words = []
        for name in self.architectures:
            number = name.removesuffix("+PTX")
            codes = f"sm_{number}" if name == number else f"[sm_{number},compute_{number}]"
            words += ["-gencode", f"arch=compute_{number},code={codes}"]
        return words

    def __str__(self) -> str:
        return f"{self.version} for " + ", ".join(f"sm_{name}" for name in self.architectures)


def find(torch: Torch) -> Toolkit | str:
    """The toolkit, or why there are no CUDA kernels. With FUSEDRNN_CUDA=1 the latter stops the build."""
    wanted = os.environ.get("FUSEDRNN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"fusedrnn: FUSEDRNN_CUDA is {wanted!r}: expected auto, 0 or 1.")
    found = "FUSEDRNN_CUDA=0 at build time" if wanted == "0" else _find(torch)
    if wanted == "1" and isinstance(found, str):
        raise SystemExit(f"fusedrnn: FUSEDRNN_CUDA=1 asks for CUDA kernels, which cannot be built here: {found}.")
    return found


def _find(torch: Torch) -> Toolkit | str:
    if sys.platform != "linux":
        return "they are built on Linux only"
    if torch.cuda is None:
        return f"torch {torch.version} is built without CUDA"
    nvcc = _nvcc()
    if nvcc is None:
        return f"no nvcc in CUDA_HOME, on PATH or in {GUESS}"
    said = _output(nvcc, "--version")
    release = re.search(r"release (\d+\.\d+)", said)
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    if release is None or top is None:
        return f"{nvcc} does not say which release it is"
    if release[1].split(".")[0] != torch.cuda.split(".")[0]:
        return f"{nvcc} is of CUDA {release[1]}, torch {torch.version} of CUDA {torch.cuda}"
    root = Path(top[1]).resolve()
    if not (root / "include/cuda_runtime.h").exists():
        return f"the CUDA toolkit in {root} has no headers of the runtime"
    if not any(path.exists() for path in _runtimes(root)):
        return f"the CUDA toolkit in {root} has no libcudart_static.a"
    return Toolkit(nvcc, release[1], root, _architectures(nvcc))


def _nvcc() -> str | None:
    """CUDA_HOME is a choice, the last place a guess."""
    chosen = os.environ.get("CUDA_HOME")
    for path in (str(Path(chosen, "bin")) if chosen else None, None, str(Path(GUESS, "bin"))):
        if nvcc := shutil.which("nvcc", path=path):
            return nvcc
    return None


def _runtimes(root: Path) -> list[Path]:
    return [root / folder / "libcudart_static.a" for folder in ("lib64", "lib", "targets/x86_64-linux/lib")]


def _architectures(nvcc: str) -> tuple[str, ...]:
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return tuple(_architecture(name) for name in re.split(r"[;,\s]+", chosen.strip()))
    if smi := shutil.which("nvidia-smi"):
        here = _output(smi, "--query-gpu=compute_cap", "--format=csv,noheader").split()
        if here and all(re.fullmatch(r"\d+\.\d", name) for name in here):
            return tuple(sorted({_architecture(name) for name in here}))
    served = {int(n) for n in re.findall(r"compute_(\d+)", _output(nvcc, "--list-gpu-arch"))}
    all_of_them = [str(n) for n in ARCHITECTURES if n in served]
    # The newest as PTX too, which later GPUs compile when the kernels are loaded.
    return (*all_of_them[:-1], f"{all_of_them[-1]}+PTX")


def _architecture(name: str) -> str:
    match = re.fullmatch(r"(\d+)\.(\d)(a?)(\+PTX)?", name)
    if match is None:
        raise SystemExit(f"fusedrnn: TORCH_CUDA_ARCH_LIST has {name!r}: expected numbers such as 8.0;9.0+PTX.")
    if int(match[1]) * 10 + int(match[2]) < ARCHITECTURES[0]:
        raise SystemExit(f"fusedrnn: TORCH_CUDA_ARCH_LIST has {name}: its kernels need 7.5 or newer.")
    return match[1] + match[2] + match[3] + (match[4] or "")


def _output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout
