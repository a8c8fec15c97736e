"""Finds the PyTorch to compile against: the one of the environment that fusedrnn is being installed into.

Nothing here imports torch. A build needs its headers and libraries alone, so an isolated build environment can use the
torch next door without making its packages importable.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = (2, 11)
REQUIREMENT = "torch>=2.11"
OVERRIDE = "FUSEDRNN_TORCH_PYTHON"

_PROBE = """
import importlib.util, sys
sys.path.pop(0)
spec = importlib.util.find_spec("torch")
print(spec.origin if spec and spec.origin else "")
"""


@dataclass(frozen=True)
class Torch:
    root: Path  # .../site-packages/torch
    version: str
    cuda: str | None  # the CUDA release it was built with

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def new_enough(self) -> bool:
        return tuple(int(n) for n in re.findall(r"\d+", self.version)[:2]) >= OLDEST

    @classmethod
    def at(cls, init_py: str) -> Torch | None:
        try:
            facts = runpy.run_path(str(Path(init_py).with_name("version.py")))
            return cls(Path(init_py).parent, str(facts["__version__"]), facts.get("cuda"))
        except (OSError, KeyError):
            return None


def find() -> Torch | None:
    """The first torch that is new enough, else whichever was found, else None."""
    found = [torch for init_py in _init_files() if (torch := Torch.at(init_py))]
    return next((torch for torch in found if torch.new_enough), found[0] if found else None)


def require() -> Torch:
    torch = find()
    needed = f"fusedrnn: PyTorch {OLDEST[0]}.{OLDEST[1]} or newer is needed to build"
    if torch is None:
        raise SystemExit(
            f"{needed} and none was found: run `pip install torch` first, or set {OVERRIDE} to a Python that has it."
        )
    if not torch.new_enough:
        raise SystemExit(f"{needed}, but {torch.root} is {torch.version}: run `pip install --upgrade torch` first.")
    if not (torch.include / "torch/csrc/stable/library.h").exists():
        raise SystemExit(f"{needed}, but the one at {torch.root} comes without C++ headers: install torch from PyPI.")
    return torch


def _init_files() -> Iterator[str]:
    if OVERRIDE in os.environ:
        yield from _ask(os.environ[OVERRIDE])
        return
    # Without isolation, or where the build environment was given a torch of its own.
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        yield spec.origin
    for python in _target_pythons():
        yield from _ask(python)


def _target_pythons() -> Iterator[str]:
    if "build-env-" not in sys.prefix:
        # No isolation, or pip's usual one: through PYTHONPATH, with the target's own interpreter.
        yield sys.executable
        return
    # A virtual environment made for this build, by pip or `python -m build`. It knows who made it since Python 3.11.
    config = Path(sys.prefix, "pyvenv.cfg").read_text(encoding="utf-8")
    if creator := re.search(r"^command *= *(.+?) -m venv ", config, re.MULTILINE):
        yield creator[1]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            yield str(Path(prefix, "bin", "python"))


def _ask(python: str) -> Iterator[str]:
    """Where `python` would import torch from, seen as its user sees it: .pth files and user site, but no PYTHON*."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        answer = subprocess.run([python, "-c", _PROBE], env=env, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    if origin := answer.stdout.strip():
        yield origin
