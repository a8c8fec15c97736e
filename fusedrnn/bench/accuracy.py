"""How far float32 results of nn.* and of fusedrnn are from those of nn.* in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .measure import threads
from .subjects import Plan, Shape, layers, sequence

LIMIT = 2.0
"""fusedrnn's error may be that many times nn.*'s."""


@dataclass(frozen=True)
class AccuracyRow:
    """Errors of one tensor: the largest difference from float64 over the largest value."""

    cell: str
    shape: Shape
    threads: int
    kind: str  # "outputs" or "gradients"
    tensor: str  # the one of this kind whose ratio is worst
    nn_error: float
    fused_error: float

    @property
    def ratio(self) -> float:
        return self.fused_error / max(self.nn_error, torch.finfo(torch.float32).tiny)


def _results(module: nn.RNNBase, shape: Shape) -> dict[str, dict[str, Tensor]]:
    """Outputs and gradients of a training step, in float64."""
    x, dy = (t.to(next(module.parameters()).dtype) for t in sequence(shape))
    y, states = module(x.requires_grad_())
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, [x, *parameters], dy)
    final = dict(zip(("h_n", "c_n"), states if isinstance(states, tuple) else (states,), strict=False))
    kinds = {"outputs": {"y": y, **final}, "gradients": dict(zip(("x", *names), gradients, strict=True))}
    return {kind: {name: t.detach().double() for name, t in tensors.items()} for kind, tensors in kinds.items()}


def _error(actual: Tensor, exact: Tensor) -> float:
    return ((actual - exact).abs().max() / exact.abs().max()).item()


def run(plan: Plan) -> Iterator[AccuracyRow]:
    """Two rows for each cell and shape, on the most threads of the plan."""
    number = max(plan.threads)
    for cell in plan.cells:
        for shape in plan.shapes:
            theirs, ours = layers(cell, shape)
            with threads(number):
                exact = _results(copy.deepcopy(theirs).double(), shape)
                results = [_results(module, shape) for module in (theirs, ours)]
            for kind, tensors in exact.items():
                rows = [
                    AccuracyRow(cell, shape, number, kind, name, *(_error(r[kind][name], t) for r in results))
                    for name, t in tensors.items()
                ]
                yield max(rows, key=lambda row: row.ratio)
