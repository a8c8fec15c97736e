"""What is on this machine: the GPU, PyTorch, the CUDA toolkit."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .processes import Runner, last_line

PROBE = Path(__file__).with_name("probe.py")
_PROBE_SECONDS = 90  # importing torch from a cold disk


class Unfit(Exception):
    """Nothing can be done on this machine; the text is one sentence that says why."""


@dataclass(frozen=True)
class Machine:
    gpu: str
    capability: str  # such as 9.0
    gpus: int
    multiprocessors: int
    gib: float
    driver: str | None
    torch: str
    torch_cuda: str | None  # the CUDA release it was built with
    cudnn: int | None
    nvcc: str | None  # release
    cuda_home: str | None
    sanitizer: str | None  # the path of compute-sanitizer
    compiler: str | None
    python: str
    platform: str
    processors: int
    packages: dict[str, str | None] = field(default_factory=dict)

    def lines(self) -> dict[str, str]:
        """For people."""
        return {
            "GPU": f"{self.gpu}, capability {self.capability}, {self.multiprocessors} multiprocessors, {self.gib} GiB"
            + (f"; one of {self.gpus}" if self.gpus > 1 else ""),
            "driver": self.driver or "unknown (no nvidia-smi)",
            "PyTorch": f"{self.torch}, built with CUDA {self.torch_cuda}, cuDNN {self.cudnn}",
            "CUDA toolkit": f"nvcc {self.nvcc} in {self.cuda_home}" if self.nvcc else "none: no nvcc was found",
            "sanitizer": self.sanitizer or "none: no compute-sanitizer was found",
            "Python": f"{self.python} on {self.platform}, {self.processors} processors",
            "packages": ", ".join(f"{name} {found or 'MISSING'}" for name, found in self.packages.items()),
        }

    def missing(self, *packages: str) -> list[str]:
        return [name for name in packages if self.packages.get(name) is None]


def find(run: Runner, environ: Mapping[str, str] = os.environ) -> Machine:
    """Looks in processes of their own, so that this one never holds the GPU.

    Raises:
        Unfit: no PyTorch, or no GPU that it sees.
    """
    answer = run([sys.executable, str(PROBE)], limit=_PROBE_SECONDS)
    lines = [line for line in answer.output.splitlines() if line.startswith("{")]
    if answer.returncode != 0 or not lines:
        raise Unfit(f"PyTorch cannot be asked for its GPU: {last_line(answer.output) or answer.stopped}")
    facts = json.loads(lines[-1])
    packages = facts["packages"]
    if packages["torch"] is None:
        raise Unfit(f"PyTorch is missing: install it for {sys.executable}, built with CUDA")
    if not facts["gpus"]:
        built = facts.get("torch_cuda")
        why = f"built with CUDA {built}, sees none" if built else "was built without CUDA"
        raise Unfit(f"no GPU: torch {packages['torch']} {why}")
    nvcc = _tool("nvcc", _homes(environ))
    top = _top(run, nvcc)
    homes = [*([top] if top else []), *_homes(environ)]
    gpu = facts["gpus"][0]
    return Machine(
        gpu=gpu["name"],
        capability=gpu["capability"],
        gpus=len(facts["gpus"]),
        multiprocessors=gpu["multiprocessors"],
        gib=gpu["gib"],
        driver=_driver(run),
        torch=packages["torch"],
        torch_cuda=facts["torch_cuda"],
        cudnn=facts.get("cudnn"),
        nvcc=_release(run, nvcc),
        cuda_home=str(homes[0]) if homes else None,
        sanitizer=_tool("compute-sanitizer", homes),
        compiler=environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++"),
        python=facts["python"],
        platform=facts["platform"],
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages={name: found for name, found in packages.items() if name != "torch"},
    )


def _homes(environ: Mapping[str, str]) -> list[Path]:
    places = (environ.get("CUDA_HOME"), environ.get("CUDA_PATH"), "/usr/local/cuda")
    return [Path(place) for place in places if place and Path(place).is_dir()]


def _tool(name: str, homes: Sequence[Path]) -> str | None:
    places = [place for home in homes for place in (home / "bin" / name, home / name / name)]
    return shutil.which(name) or next((str(p) for p in places if p.is_file() and os.access(p, os.X_OK)), None)


def _top(run: Runner, nvcc: str | None) -> Path | None:
    """The folder of the toolkit, which nvcc knows: it may be called through a link or a script elsewhere."""
    said = run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], limit=30).output if nvcc else ""
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else None


def _release(run: Runner, nvcc: str | None) -> str | None:
    release = re.search(r"release (\d+\.\d+)", run([nvcc, "--version"], limit=30).output) if nvcc else None
    return release.group(1) if release else None


def _driver(run: Runner) -> str | None:
    asked = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"], limit=30)
    return last_line(asked.output) or None if asked.returncode == 0 else None
