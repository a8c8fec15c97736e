"""Peak memory of a training step, each in a process of its own, which no earlier step has filled.

Counted is what the resident set grows by from the moment when weights and input are there: results, what is kept for
backward, gradients and working memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import fusedrnn

from .measure import Function
from .subjects import Plan, Shape, layers, training

SIDES = ("nn", "fused", "fused, recompute")


@dataclass(frozen=True)
class MemoryRow:
    cell: str
    shape: Shape
    threads: int
    nn_bytes: int
    fused_bytes: int
    recompute_bytes: int | None  # with recompute=True, for the cells whose gates are kept otherwise


def peak_growth(run: Function) -> int:
    """Bytes by which a call raises the resident set of this process at its highest.

    Where the kernel's high-water mark cannot be reset, an earlier peak hides what stays below it.
    """
    before = _resident() if _reset_peak() else _peak()
    run()
    return _peak() - before


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return _status("VmHWM") <= _status("VmRSS") * 1.01
    except OSError:
        return False


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training_step(cell: str, side: str, shape: Shape) -> int:
    """:func:`peak_growth` of one training step, after a step of one row that loads what is loaded once."""
    nn, fused = layers(cell, shape)
    if side == SIDES[2]:
        fused.recompute = True
    module = nn if side == "nn" else fused
    training(module, shape._replace(B=1, T=1))()
    return peak_growth(training(module, shape))


def _in_a_process(cell: str, side: str, shape: Shape, threads: int) -> int:
    command = [sys.executable, "-m", "fusedrnn.bench.memory", json.dumps([cell, side, shape, threads])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"the process that measures memory ended with status {done.returncode}: {done.stderr.strip()}")
    return int(done.stdout)


def run(plan: Plan) -> Iterator[MemoryRow]:
    """A row for each cell and shape, on the most threads of the plan."""
    threads = max(plan.threads)
    for cell in plan.cells:
        keeps_gates = fusedrnn.ops.CELLS[cell].saved > 0
        for shape in plan.shapes:
            nn, fused = (_in_a_process(cell, side, shape, threads) for side in SIDES[:2])
            again = _in_a_process(cell, SIDES[2], shape, threads) if keeps_gates else None
            yield MemoryRow(cell, shape, threads, nn, fused, again)


if __name__ == "__main__":
    _cell, _side, _shape, _threads = json.loads(sys.argv[1])
    torch.set_num_threads(_threads)
    print(training_step(_cell, _side, Shape(*_shape)))
