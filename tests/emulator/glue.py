"""csrc/ops_cuda.cpp without a GPU: its operators on CPU tensors, their kernels in the emulator.

They are `torch.ops.fusedrnn_emulated.*`, with the schemas of `torch.ops.fusedrnn.*`.
"""

from __future__ import annotations

import functools
import runpy
import shlex
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from emulator import toolchain

from fusedrnn.ops import BACKWARD, FORWARD, SAVING

GLUE = toolchain.HERE / "glue"
CSRC = toolchain.SOURCE / "csrc"
TORCH = Path(torch.__file__).parent


@functools.cache
def load() -> Any:
    """The namespace of the emulated operators."""
    base = [*toolchain.base_command(), "-O1", f"-isystem{TORCH / 'include'}"]
    flags = runpy.run_path(str(toolchain.SOURCE / "build_tools" / "flags.py"))
    torch_side = [*base, *shlex.split(flags["CUDA_TORCH_API"])]
    python = f"-isystem{sysconfig.get_path('include')}"
    redirected = ["-include", str(GLUE / "redirect.h")]
    jobs = [
        (CSRC / "ops_cuda.cpp", [*torch_side, python, *redirected]),
        (GLUE / "device.cpp", torch_side),
        (CSRC / "cuda" / "layer.cpp", base),
        *toolchain.emulated_jobs("plain", sorted((CSRC / "cuda").glob("*.cu"))),
    ]
    library = toolchain.link("glue", "plain", jobs, [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"])
    torch.ops.load_library(str(library))
    return torch.ops.fusedrnn_emulated


@contextmanager
def in_place_of_the_cpu() -> Iterator[Any]:
    """fusedrnn's autograd functions, and all that is made of them, run the emulated operators."""
    ops = load()
    tables = (
        (FORWARD, lambda cell: getattr(ops, cell)),
        (SAVING, lambda cell: getattr(ops, f"{cell}_saving")),
        (BACKWARD, lambda cell: getattr(ops, f"{cell}_backward")),
    )
    kept = [dict(table) for table, _ in tables]
    try:
        for table, emulated in tables:
            table.update({cell: emulated(cell).default for cell in table})
        yield ops
    finally:
        for (table, _), old in zip(tables, kept, strict=True):
            table.update(old)
    found = ops.reports()
    assert not found, found
