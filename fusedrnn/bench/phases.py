"""Where the time of a layer goes: packing, products, time loop, and what surrounds them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .measure import SPREAD_LIMIT, spread, threads
from .subjects import Plan, Shape, layers, products, sequence

# In the order of the enumeration in csrc/cpu/layer.h.
NAMES = (
    "pack",
    "project",
    "loop",
    "recompute",
    "input gradient",
    "weight gradient",
    "copy",
    "whole",
)
CALL, REST, OUTSIDE = "the whole call", "rest of the operator", "outside the operator"
_LEAST_SHARE = 0.001  # of phases that are shown
PASSES = ("inference", "forward", "backward")


@dataclass(frozen=True)
class PhaseRow:
    cell: str
    shape: Shape
    threads: int
    run: str  # one of PASSES
    phase: str
    ms: float
    share: float  # of the time of the call
    spread: float  # of the time of the call: half the interquartile range over the median
    gflops: float | None  # where the phase is a product
    peak_share: float | None

    @property
    def noisy(self) -> bool:
        return self.spread > SPREAD_LIMIT


def _flops(cell: str, shape: Shape) -> dict[str, int]:
    project, loop = products(cell, shape)
    return {"project": project, "loop": loop, "input gradient": project, "weight gradient": project + loop}


def _calls(module: nn.RNNBase, shape: Shape) -> Callable[[], Iterator[str]]:
    """A function that makes one call of each pass, naming it when it has ended."""
    x, dy = sequence(shape)
    x_grad = x.clone().requires_grad_()
    wanted = [x_grad, *module.parameters()]

    def run() -> Iterator[str]:
        with torch.inference_mode():
            module(x)
        yield PASSES[0]
        y = module(x_grad)[0]
        yield PASSES[1]
        torch.autograd.grad(y, wanted, dy)  # on the CPU it runs on the thread that calls it
        yield PASSES[2]

    return run


def _measure(module: nn.RNNBase, shape: Shape, seconds: float, least: int) -> dict[str, dict[str, list[float]]]:
    """Times in ms of each pass, under :data:`CALL`, and of each of its phases."""
    take = torch.ops.fusedrnn.cpu_phases
    calls = _calls(module, shape)
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in PASSES}
    for _ in calls():  # warm
        pass
    end = time.perf_counter() + seconds
    try:
        while least > 0 or time.perf_counter() < end:
            least -= 1
            take(True)
            start = time.perf_counter()
            for name in calls():
                whole = (time.perf_counter() - start) * 1e3
                ms = dict(zip(NAMES, (ns / 1e6 for ns in take(True)), strict=True))
                operator = ms.pop("whole")
                ms[REST] = operator - sum(ms.values())
                ms[OUTSIDE] = whole - operator
                for phase, value in {CALL: whole, **ms}.items():
                    samples[name].setdefault(phase, []).append(value)
                start = time.perf_counter()
    finally:
        take(False)
    return samples


def run(plan: Plan) -> Iterator[PhaseRow]:
    """A row for each pass and for each phase that takes time in it, of each cell, shape and number of threads."""
    for cell in plan.cells:
        for shape in plan.shapes:
            _, fused = layers(cell, shape)
            flops = _flops(cell, shape)
            for number in plan.threads:
                with threads(number):
                    passes = _measure(fused, shape, plan.seconds, plan.least)
                peak = (plan.peaks or {}).get(number)
                for name, samples in passes.items():
                    phases = {phase: statistics.median(times) for phase, times in samples.items()}
                    noise = spread(samples[CALL])
                    for phase, ms in phases.items():
                        if ms < _LEAST_SHARE * phases[CALL]:
                            continue
                        gflops = flops[phase] / ms / 1e6 if phase in flops else None
                        share = gflops / peak if gflops and peak else None
                        yield PhaseRow(cell, shape, number, name, phase, ms, ms / phases[CALL], noise, gflops, share)
