"""What masks and early ends cost: `resets=`, `lengths=` and PackedSequence against the call without them.

Entries end after a number of steps from T/2 to T, uniformly drawn. Their calls are compared by the token: a packed
token should cost what one of a padded batch does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .measure import Comparison, Function, alternate, comparison, threads
from .subjects import Plan, Row, Shape, layers, sequence

RESETS = 0.05  # of the steps of all entries
PLAIN, NN_PLAIN, NN_PACKED = "plain", "nn plain", "nn packed"
COSTS = ("resets", "packed", "packed unsorted", "lengths", "lengths unsorted")
"""Calls of fusedrnn that are compared with :data:`PLAIN`."""


@dataclass(frozen=True, kw_only=True)
class MaskRow(Row):
    """Calls of one module. ``timing`` compares those with the sorted PackedSequence; its noise is the worst of all."""

    tokens: int  # of those that end early
    ms: dict[str, float]  # of each call

    def cost(self, call: str) -> float:
        """The time of a call over that of the plain one; where entries end early, of a token."""
        plain = NN_PLAIN if call == NN_PACKED else PLAIN
        tokens = 1.0 if call == "resets" else self.tokens / (self.shape.B * self.shape.T)
        return self.ms[call] / self.ms[plain] / tokens


def _lengths(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(max(1, shape.T // 2), shape.T + 1, (shape.B,), generator=generator)


def _inputs(shape: Shape) -> dict[str, tuple[Any, Tensor, dict[str, Tensor]]]:
    """By call of fusedrnn: the input of the module, the gradient of y, and options."""
    x, dy = sequence(shape)
    unsorted = _lengths(shape)
    sorted_ = unsorted.sort(descending=True).values
    resets = torch.rand(shape.T, shape.B, generator=torch.Generator().manual_seed(0)) < RESETS
    packed, unsorted_packed = (pack_padded_sequence(x, n, enforce_sorted=n is sorted_) for n in (sorted_, unsorted))
    dy_packed = pack_padded_sequence(dy, sorted_).data
    return {
        PLAIN: (x, dy, {}),
        "resets": (x, dy, {"resets": resets}),
        "packed": (packed, dy_packed, {}),
        "packed unsorted": (unsorted_packed, dy_packed, {}),
        "lengths": (x, dy, {"lengths": sorted_}),
        "lengths unsorted": (x, dy, {"lengths": unsorted}),
    }


def _inference(module: nn.RNNBase, x: Any, _: Tensor, options: dict[str, Tensor]) -> Function:
    def run() -> object:
        with torch.inference_mode():
            return module(x, **options)

    return run


def _training(module: nn.RNNBase, x: Any, dy: Tensor, options: dict[str, Tensor]) -> Function:
    packed = not isinstance(x, Tensor)
    data = (x.data if packed else x).detach().requires_grad_()
    x = x._replace(data=data) if packed else data
    wanted = [data, *module.parameters()]

    def run() -> object:
        y = module(x, **options)[0]
        return torch.autograd.grad(y.data if packed else y, wanted, dy)

    return run


def _calls(make: Callable[..., Function], theirs: nn.RNNBase, ours: nn.RNNBase, shape: Shape) -> dict[str, Function]:
    inputs = _inputs(shape)
    calls = {name: make(ours, *arguments) for name, arguments in inputs.items()}
    return {**calls, NN_PLAIN: make(theirs, *inputs[PLAIN]), NN_PACKED: make(theirs, *inputs["packed"])}


def run(plan: Plan) -> Iterator[MaskRow]:
    """A row for each cell, shape, task and number of threads."""
    for cell in plan.cells:
        for shape in plan.shapes:
            theirs, ours = layers(cell, shape)
            tokens = int(_lengths(shape).sum())
            for task, make in (("inference", _inference), ("training", _training)):
                calls = _calls(make, theirs, ours, shape)
                for number in plan.threads:
                    with threads(number):
                        ms, timing = _times(calls, plan)
                    yield MaskRow(
                        cell=cell, shape=shape, threads=number, task=task, timing=timing, tokens=tokens, ms=ms
                    )


def _times(calls: dict[str, Function], plan: Plan) -> tuple[dict[str, float], Comparison]:
    """Milliseconds of each call, and nn.* against fusedrnn with the sorted PackedSequence.

    Calls of fusedrnn take turns among themselves: the one after a call of nn.* would find other caches than the rest.
    """

    def take_turns(*names: str) -> dict[str, list[float]]:
        functions = [calls[name] for name in names]
        # Each as often as in a comparison of two.
        times = alternate(functions, plan.seconds * len(names) / 2, plan.least)
        return dict(zip(names, times, strict=True))

    ours, both = take_turns(PLAIN, *COSTS), take_turns(NN_PLAIN, NN_PACKED, "packed")
    timing = comparison(both[NN_PACKED], both["packed"], others=[*ours.values(), both[NN_PLAIN]])
    return {name: statistics.median(times) for name, times in {**both, **ours}.items()}, timing
