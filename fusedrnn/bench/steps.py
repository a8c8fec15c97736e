"""Streaming: one step of one row a call, as in generation and control, against nn.X and nn.XCell.

A run makes many steps in a row, as a stream does, so that the weights are where the last step has left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .measure import Function, compare, threads
from .subjects import Plan, Row, Shape, cells, layers, products

SHAPE = Shape(1, 1, 256, 256)
_STEPS = 20  # of a run


def _layer(module: Any) -> Callable[[Any], Any]:
    x = torch.randn(1, 1, SHAPE.I)
    return lambda state: module(x, state)[1]


def _cell(module: Any) -> Callable[[Any], Any]:
    x = torch.randn(1, SHAPE.I)
    return lambda state: module(x, state)


def _steps(step: Callable[[Any], Any], carried: bool) -> Function:
    """A run of steps, each from zeros or from the state in which the one before it ended."""
    state = None

    def run() -> None:
        nonlocal state
        with torch.inference_mode():
            for _ in range(_STEPS):
                state = step(state if carried else None)

    return run


def run(plan: Plan) -> Iterator[Row]:
    """A row for each cell, kind of module, state and number of threads; of the shape :data:`SHAPE`."""
    for cell in plan.cells:
        for kind, make, step in (("module", layers, _layer), ("cell", cells, _cell)):
            modules = make(cell, SHAPE)
            for carried in (False, True):
                for number in plan.threads:
                    nn, fused = (_steps(step(module), carried) for module in modules)
                    with threads(number):
                        timing = compare(nn, fused, plan.seconds, plan.least, calls=_STEPS)
                    yield Row(
                        cell=cell,
                        shape=SHAPE,
                        threads=number,
                        task=f"{kind}, state carried" if carried else f"{kind}, from zeros",
                        timing=timing,
                        flops=sum(products(cell, SHAPE)),
                        peak=(plan.peaks or {}).get(number),
                    )
