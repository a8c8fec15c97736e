"""Whole sequences: the module call in inference_mode, and the training step, against nn.LSTM, nn.GRU and nn.RNN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from .measure import compare, threads
from .subjects import Plan, Row, inference, layers, products, training

# The products of backward are twice those of forward.
_TASKS = {"inference": (inference, 1), "training": (training, 3)}


def run(plan: Plan) -> Iterator[Row]:
    """A row for each cell, shape, task and number of threads."""
    for cell in plan.cells:
        for shape in plan.shapes:
            nn, fused = layers(cell, shape)
            for task, (make, times_forward) in _TASKS.items():
                for number in plan.threads:
                    with threads(number):
                        timing = compare(make(nn, shape), make(fused, shape), plan.seconds, plan.least)
                    yield Row(
                        cell=cell,
                        shape=shape,
                        threads=number,
                        task=task,
                        timing=timing,
                        flops=times_forward * sum(products(cell, shape)),
                        peak=(plan.peaks or {}).get(number),
                    )


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def scaling(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Each row on the fewest threads with the row of the same work on the most, where they differ."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cell, row.shape, row.task), []).append(row)
    for group in groups.values():
        few, many = (choose(group, key=lambda r: r.threads) for choose in (min, max))
        if few.threads < many.threads:
            yield few, many
