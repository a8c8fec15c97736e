"""``python -m acceptance.worker TASK JSON``: what runs on the GPU, in processes of its own, and prints JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from fusedrnn import network
from fusedrnn.info import info
from fusedrnn.ops import CELLS, Masks

from . import device_times
from .plan import Shape

FORCE = "FUSEDRNN_ALGORITHM"


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


@contextmanager
def forced(algorithm: str | None) -> Iterator[None]:
    before = os.environ.pop(FORCE, None)
    if algorithm:
        os.environ[FORCE] = algorithm
    try:
        yield
    finally:
        os.environ.pop(FORCE, None)
        if before is not None:
            os.environ[FORCE] = before


def refused(error: RuntimeError) -> bool:
    return "the algorithm" in str(error)


def kernels(request: dict[str, Any]) -> None:
    """A small forward and backward pass of every cell and dtype by every algorithm; half types, whose products a
    sanitizer may fall over, come last."""
    device = request["device"]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for algorithm in request["algorithms"]:
            for cell in CELLS:
                for T, B, I, H, turned, masked in [
                    (3, 5, 4, 33, False, False),
                    (2, 17, 8, 64, True, False),
                    (3, 5, 4, 33, True, True),
                ]:
                    with forced(algorithm):
                        outcome = one_kernel(cell, (T, B, I, H), dtype, turned, masked, device)
                    name = f"{algorithm} {cell} {str(dtype)[6:]} H={H}"
                    say(case=f"{name}, masked" if masked else name, outcome=outcome)


def one_kernel(
    cell: str, size: tuple[int, int, int, int], dtype: torch.dtype, turned: bool, masked: bool, device: str
) -> str:
    """Of T, B, I, H; turned: batch first and reversed; masked: with lengths and resets."""
    T, B, I, H = size
    shape = CELLS[cell]
    x = torch.randn(*((B, T) if turned else (T, B)), I, device=device, dtype=dtype, requires_grad=True)
    weights = [torch.randn(n, device=device, dtype=dtype).div(8).requires_grad_()
               for n in ((shape.gates * H, I), (shape.gates * H, H), (shape.gates * H,))]  # fmt: skip
    states = [torch.zeros(B, H, device=device, dtype=dtype) for _ in range(shape.states)]
    masks = network.NO_MASKS
    if masked:
        resets = torch.rand(*x.shape[:2], device=device) < 0.3
        masks = Masks(lengths=torch.arange(B, device=device) % (T + 1), resets=resets)
    try:
        out = network.layer(cell, x, states, [*weights, weights[2]], None, turned, turned, masks=masks)
        torch.autograd.grad([t.sum() for t in out], [x, *weights])
    except RuntimeError as error:
        if not refused(error):
            raise
        return "refused"
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return "ran"


def each(request: dict[str, Any], row: Callable[[Shape], dict[str, Any]]) -> None:
    """One row after the other until the time is up."""
    end = time.monotonic() + request["seconds"]
    for values in request["shapes"]:
        shape = Shape(*values)
        if time.monotonic() >= end:
            return
        say(begun=str(shape))
        try:
            found = row(shape)
        except torch.OutOfMemoryError:
            found = {"skipped": "out of memory"}
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise  # nothing works in this process any more
            found = {"skipped" if refused(error) else "error": str(error)}
        say(row={"shape": shape._asdict(), **found})


def benchmark(request: dict[str, Any]) -> None:
    device = request["device"]

    def row(shape: Shape) -> dict[str, Any]:
        with forced(request["algorithm"]), device_times.precision(shape.dtype):
            return device_times.against_nn(shape, device, seconds=request.get("each", 0.25))

    each(request, row)


def algorithms(request: dict[str, Any]) -> None:
    device = request["device"]

    def row(shape: Shape) -> dict[str, Any]:
        with device_times.precision(shape.dtype):
            return {"algorithms": times_of_each(shape, device, request["algorithms"], request.get("each", 0.15))}

    each(request, row)


def times_of_each(shape: Shape, device: str, names: Iterable[str | None], seconds: float) -> dict[str, Any]:
    """us per step of each algorithm, or why it cannot; without a name, of the one that is chosen."""
    found: dict[str, Any] = {}
    subject = device_times.Subject(shape, device)
    for name in names:
        with forced(name):
            try:
                found[name or "chosen"] = device_times.alone(subject, seconds)
            except RuntimeError as error:
                if not refused(error):
                    raise
                found[name or "chosen"] = {"refused": str(error)}
    return found


def about(request: dict[str, Any]) -> None:
    say(**asdict(info()), path=str(Path(fusedrnn.__file__).parent))


TASKS = {"info": about, "kernels": kernels, "benchmark": benchmark, "algorithms": algorithms}

if __name__ == "__main__":
    TASKS[sys.argv[1]](json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
