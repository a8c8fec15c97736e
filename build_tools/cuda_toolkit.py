"""Finds what the CUDA kernels are compiled with, or says why they are not built.

FUSEDRNN_CUDA is auto (build them where that is possible), 0 (do not) or 1 (fail where it is not). TORCH_CUDA_ARCH_LIST
names architectures as for torch's own extensions ("8.0;9.0+PTX"); without it they are those of the GPUs that are here,
and where there is none, all that fusedrnn is made for.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nvcc import ARCHITECTURES
from target_torch import Torch

# As torch names them in TORCH_CUDA_ARCH_LIST; older ones are not served.
_NAMES = {
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}
_GUESS = Path("/usr/local/cuda")
# Where packages of distributions and of conda keep headers and libraries.
_TARGET = "targets/sbsa-linux" if platform.machine() == "aarch64" else f"targets/{platform.machine()}-linux"


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: str  # "13.0"
    root: Path
    architectures: tuple[str, ...]  # "90" for a kernel of sm_90, "90+PTX" for that and code for what comes after

    @property
    def include(self) -> Path:
        return next(path for path in _includes(self.root) if _has_headers(path))

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
        return f"no nvcc in CUDA_HOME, on PATH or in {_GUESS}"
    said = _output(nvcc, "--version")
    release = re.search(r"release (\d+\.\d+)", said)
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    if release is None or top is None:
        return f"{nvcc} does not say which release it is"
    if release[1].split(".")[0] != torch.cuda.split(".")[0]:
        return f"{nvcc} is of CUDA {release[1]}, torch {torch.version} of CUDA {torch.cuda}"
    root = Path(top[1]).resolve()
    if not any(_has_headers(path) for path in _includes(root)):
        return f"the CUDA toolkit in {root} has no headers of the runtime"
    if not any(path.exists() for path in _runtimes(root)):
        return f"the CUDA toolkit in {root} has no libcudart_static.a"
    architectures = _architectures(nvcc)
    if not architectures:
        return f"they need a GPU of compute capability 7.5 or newer, those here have {', '.join(_gpus())}"
    return Toolkit(nvcc, release[1], root, architectures)


def _nvcc() -> str | None:
    # CUDA_HOME is a choice, the last place a guess.
    home = os.environ.get("CUDA_HOME")
    chosen = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None
    return chosen or shutil.which("nvcc") or shutil.which("nvcc", path=str(_GUESS / "bin"))


def _includes(root: Path) -> list[Path]:
    return [root / "include", root / _TARGET / "include"]


def _has_headers(include: Path) -> bool:
    return (include / "cuda_runtime.h").exists()


def _runtimes(root: Path) -> list[Path]:
    return [root / folder / "libcudart_static.a" for folder in ("lib64", "lib", f"{_TARGET}/lib")]


def _architectures(nvcc: str) -> tuple[str, ...]:
    """None where there are GPUs, all of them too old."""
    if chosen := re.findall(r"[^;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
        return tuple(_architecture(number) for name in chosen for number in _NAMES.get(name, name).split(";"))
    served = {int(n) for n in re.findall(r"compute_(\d+)", _output(nvcc, "--list-gpu-arch"))}
    if here := _gpus():
        numbers = sorted({int(name.replace(".", "")) for name in here} - set(range(ARCHITECTURES[0])))
        # A GPU that this nvcc is too old for takes what is built for all.
        if served.issuperset(numbers):
            return tuple(map(str, numbers))
    all_of_them = [str(n) for n in ARCHITECTURES if n in served]
    # The newest as PTX too, which later GPUs compile when the kernels are loaded.
    return (*all_of_them[:-1], f"{all_of_them[-1]}+PTX")


def _gpus() -> list[str]:
    """Compute capabilities of the GPUs that are here, as far as they are known."""
    smi = shutil.which("nvidia-smi")
    said = _output(smi, "--query-gpu=compute_cap", "--format=csv,noheader").split() if smi else []
    return said if all(re.fullmatch(r"\d+\.\d", name) for name in said) else []


def _architecture(name: str) -> str:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
    if match is None:
        raise SystemExit(f"fusedrnn: TORCH_CUDA_ARCH_LIST has {name!r}: expected numbers such as 8.0;9.0+PTX.")
    if int(match[1]) * 10 + int(match[2]) < ARCHITECTURES[0]:
        raise SystemExit(f"fusedrnn: TORCH_CUDA_ARCH_LIST has {name}: its kernels need 7.5 or newer.")
    return match[1] + match[2] + match[3] + (match[4] or "")


def _output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout
