"""Compiles kernels for the emulator into modules that Python can load, and calls them with numpy arrays."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parents[1]
CACHE = SOURCE / "build" / "emulator"
RUNTIME = sorted((HERE / "runtime").glob("*.cpp"))

COMMON = "-std=c++17 -fPIC -fvisibility=hidden -fno-gnu-unique -Wall -Wextra -Wno-unknown-pragmas"
# Calls to the hooks at each access, and no calls at functions, which nobody listens to.
THREAD = "-fsanitize=thread --param tsan-instrument-func-entry-exit=0"
ADDRESS = "-fsanitize=address"
UNDEFINED = "-fsanitize=undefined -fno-sanitize-recover=all"


@dataclass(frozen=True)
class Build:
    """How kernels and the emulator's runtime are compiled, and what they are linked with."""

    kernels: str
    runtime: str
    link: str = ""


BUILDS = {
    "plain": Build("-O1", "-O2"),
    "checked": Build(f"-O1 -g1 {THREAD}", "-O2 -DEMULATOR_CHECKED"),
    "sanitized": Build(f"-O1 -g1 {ADDRESS} {UNDEFINED}", f"-O1 {ADDRESS}", f"{ADDRESS} {UNDEFINED}"),
}


class Unavailable(Exception):
    """Something that kernels are compiled with is not there."""


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "g++"))
    for tool in (command[0], "addr2line"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool}")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        raise Unavailable(f"{command[0]} is not GCC")
    if os.uname().machine != "x86_64":
        raise Unavailable("the emulator's fibers are written for x86-64")
    return command


def cuda_headers() -> Path:
    """CUDA's include directory: of a toolkit, or of NVIDIA's packages for Python."""
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parents[1])]
    packages = [
        path for root in site.getsitepackages() for path in sorted(Path(root).glob("nvidia/cu*/include"), reverse=True)
    ]
    for path in [*(Path(root) / "include" for root in toolkits if root), *packages]:
        if all(
            (path / name).exists() for name in ("cuda_runtime_api.h", "cuda_fp16.h", "crt/host_defines.h", "nv/target")
        ):
            return path
    names = "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    raise Unavailable(f"no CUDA headers: set CUDA_HOME to a toolkit, or pip install {names}")


def pybind11_headers() -> Path:
    try:
        import pybind11
    except ImportError:
        raise Unavailable("no pybind11") from None
    return Path(pybind11.get_include())


def digest(parts: Iterable[str | bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:20]


def headers() -> list[Path]:
    """All that an object can depend on besides its source."""
    folders = (SOURCE / "csrc", HERE)
    return sorted(path for folder in folders for kind in ("*.h", "*.cuh") for path in folder.rglob(kind))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(command: list[str], to: Path) -> None:
    """Runs a command that writes `to`, which is there whole or not at all."""
    partial = to.with_suffix(f".{os.getpid()}{to.suffix}")
    done = subprocess.run([*command, "-o", str(partial)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout[-8000:]}")
    os.replace(partial, to)


def base_command() -> list[str]:
    # What CUDA's headers warn of is theirs.
    return [*compiler(), *shlex.split(COMMON), f"-I{HERE / 'include'}", f"-I{SOURCE}", f"-isystem{cuda_headers()}"]


def emulated_jobs(build: str, kernels: Sequence[Path], defines: Sequence[str] = ()) -> list[tuple[Path, list[str]]]:
    """How the kernels and the emulator's runtime are compiled."""
    base, how = base_command(), BUILDS[build]
    return [
        *((path, [*base, *shlex.split(how.kernels), *defines, "-x", "c++"]) for path in kernels),
        *((path, [*base, *shlex.split(how.runtime)]) for path in RUNTIME),
    ]


def link(name: str, build: str, jobs: Sequence[tuple[Path, list[str]]], libraries: Sequence[str] = ()) -> Path:
    """A shared object of sources and the commands that compile them; made again when a source changes."""
    shared = digest(path.read_bytes() for path in headers())
    objects = [
        CACHE / f"{path.stem}-{digest([shared, path.name, path.read_bytes(), *command])}.o" for path, command in jobs
    ]
    module = CACHE / f"{name}-{build}-{digest(map(str, objects))}.so"
    if module.exists():
        return module
    with one_at_a_time():
        missing = [(c, p, o) for (p, c), o in zip(jobs, objects, strict=True) if not o.exists()]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda job: make([*job[0], "-c", str(job[1])], job[2]), missing))
        if not module.exists():
            flags = shlex.split(BUILDS[build].link)
            make([*compiler(), "-shared", *flags, *map(str, objects), *libraries, "-ldl"], module)
    return module


def compile_module(build: str, kernels: Sequence[Path], bindings: Path, defines: Sequence[str] = ()) -> Path:
    """A shared object with kernels, what binds them to Python, and the emulator."""
    python = f"-isystem{sysconfig.get_path('include')}"
    # pybind11 takes longest to compile, so it comes first; no build instruments it.
    binding = (bindings, [*base_command(), f"-isystem{pybind11_headers()}", "-O1", python])
    return link(bindings.stem, build, [binding, *emulated_jobs(build, kernels, defines)])


class Report(NamedTuple):
    kind: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}:{self.line}: {self.message}"


class Found(AssertionError):
    """The emulator has something to report of a launch."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__("\n".join(map(str, reports)))
        self.reports = reports


class Unwritten(NamedTuple):
    """An array whose device memory holds nothing before the launch: a kernel that reads it first is found."""

    array: np.ndarray


ORDERS = ["forward", "reverse", "random"]


class Emulator:
    """A module of emulated kernels."""

    def __init__(self, path: Path) -> None:
        # pybind11 keeps one module of a name; Python looks for the part behind the dot.
        spec = importlib.util.spec_from_file_location(f"{path.stem}.emulated", path)
        assert spec and spec.loader
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def launch(self, name: str, *arguments: Any, order: str = "forward", seed: int = 1, preempt: int = 0) -> None:
        """Calls a function that launches kernels. Arrays are copied to device memory, and back where they can be
        written; None is a null pointer. Raises Found."""
        module, arrays, values = self.module, [], []
        for argument in arguments:
            array = argument.array if isinstance(argument, Unwritten) else argument
            if isinstance(array, np.ndarray):
                assert array.flags.c_contiguous
                p = module.allocate(array.nbytes)
                arrays.append((array, p))
                if not isinstance(argument, Unwritten):
                    module.upload(p, array)
            values.append(p if isinstance(array, np.ndarray) else 0 if array is None else array)
        module.set_schedule(ORDERS.index(order), seed, preempt)
        module.take_reports()
        try:
            error = getattr(module, name)(*values)
            for array, p in arrays:
                if array.flags.writeable:
                    module.download(array, p)
        finally:
            for _, p in arrays:
                module.free(p)
        reports = [Report(*report) for report in module.take_reports()]
        if reports:
            raise Found(reports)
        if error:
            raise RuntimeError(f"{name}: CUDA error {error}")
