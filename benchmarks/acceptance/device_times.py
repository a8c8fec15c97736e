"""Times of layers on a device: fusedrnn and nn.* in turns, by the device's own clock."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fusedrnn.bench import subjects
from fusedrnn.bench.measure import Comparison, Function, Timer, repeat, spread, take_turns

from .plan import Shape

_WARM = 3  # calls
_LEAST = 5  # rounds
_MOST = 200

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float64": torch.float64,
}

# Further apart from nn.* than this, relative to the largest output, a time says nothing.
DIFFERENCE = {"float16": 0.02, "bfloat16": 0.1, "float32": 1e-3, "tf32": 0.02, "float64": 1e-9}


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """The same for both sides: TF32 in cuBLAS, which fusedrnn heeds, and in cuDNN, or in neither."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    # flags(): where other code has forbidden to set allow_tf32 itself, as torch's own test tools do.
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=dtype == "tf32"):
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def timer_of(device: str) -> Timer:
    return _by_events if device.startswith("cuda") else _by_clock


def _by_events(function: Function) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _by_clock(function: Function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def in_turns(
    functions: Sequence[Function], timer: Timer, seconds: float, clock: Callable[[], float] = time.monotonic
) -> list[list[float]]:
    """Times of each function: once warm, they are called in turn for some seconds, a few times at least."""
    for f in functions:
        for _ in range(_WARM):
            timer(f)
    return take_turns(functions, timer, seconds, _LEAST, _MOST, clock)


class Subject:
    """A layer of each library with the same weights, and what is done with it."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device = shape, device
        dtype = DTYPES[shape.dtype]
        pair = subjects.layers(shape.cell, subjects.Shape(shape.B, shape.T, shape.H, shape.H))
        self.theirs, self.ours = (module.to(device=device, dtype=dtype) for module in pair)
        generator = torch.Generator().manual_seed(0)
        sizes = (shape.T, shape.B, shape.H)
        self.x, self.dy = (torch.randn(sizes, generator=generator).to(device, dtype) for _ in range(2))

    def forward(self, module: nn.RNNBase) -> Function:
        def run() -> object:
            with torch.inference_mode():
                return module(self.x)

        return run

    def training(self, module: nn.RNNBase) -> Function:
        """Forward, and the gradients of the input and of every parameter."""
        x = self.x.detach().requires_grad_()
        wanted = [x, *module.parameters()]
        return lambda: torch.autograd.grad(module(x)[0], wanted, self.dy)

    def difference(self) -> float | None:
        """Of the outputs, relative to the largest; None where a number is missing."""
        with torch.no_grad():
            right, y = self.theirs(self.x)[0], self.ours(self.x)[0]
        found = ((y - right).abs().max() / right.abs().max()).item()
        return found if math.isfinite(found) else None

    def us_per_step(self, ms: float) -> float:
        return ms * 1e3 / self.shape.T


def against_nn(shape: Shape, device: str, seconds: float, timer: Timer | None = None) -> dict[str, Any]:
    """A row of the report: times per step of both sides, how far they may be trusted, and which algorithms ran."""
    subject = Subject(shape, device)
    timer = timer or timer_of(device)
    difference = subject.difference()
    wrong = difference is None or difference > DIFFERENCE[shape.dtype]
    row: dict[str, Any] = {"difference": difference, "wrong": wrong, "algorithms": algorithms_of(subject)}
    for task, make in (("forward", subject.forward), ("training", subject.training)):
        theirs, ours = in_turns([make(subject.theirs), make(subject.ours)], timer, seconds)
        times = Comparison(
            nn_ms=statistics.median(theirs),
            fused_ms=statistics.median(ours),
            spread=max(spread(theirs), spread(ours)),
            repeat=repeat(theirs),
            rounds=len(theirs),
        )
        row[task] = {
            "nn_us": subject.us_per_step(times.nn_ms),
            "fused_us": subject.us_per_step(times.fused_ms),
            "ratio": times.ratio,
            "spread": times.spread,
            "repeat": times.repeat,
            "rounds": times.rounds,
            "noise": times.noise,
        }
    return row


def alone(subject: Subject, seconds: float, timer: Timer | None = None) -> dict[str, float]:
    """us per step of fusedrnn by itself."""
    timer = timer or timer_of(subject.device)
    tasks = {"forward": subject.forward(subject.ours), "training": subject.training(subject.ours)}
    medians = {task: statistics.median(in_turns([f], timer, seconds)[0]) for task, f in tasks.items()}
    return {task: subject.us_per_step(ms) for task, ms in medians.items()}


def algorithms_of(subject: Subject) -> str | None:
    """Which algorithm forward and backward ran, by the names of their kernels; None where no kernel has such a name."""
    run = subject.training(subject.ours)
    if not subject.device.startswith("cuda"):
        return None
    run()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            run()
            torch.cuda.synchronize()
    except RuntimeError as error:
        if "CUDA error" in str(error):
            raise
        return None  # the profiler may be forbidden here
    return algorithms_in([event.name for event in profile.events()])


def algorithms_in(names: Sequence[str]) -> str | None:
    found = sorted({m.groups() for name in names if (m := re.search(r"(step|block|grid)_(forward|backward)", name))},
                   key=lambda pair: pair[1], reverse=True)  # fmt: skip
    return ", ".join(f"{task} {algorithm}" for algorithm, task in found) or None
