"""The sections that measure: the algorithms against each other, and fusedrnn against nn.*."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .checks import json_line
from .plan import ALGORITHMS, Shape, algorithm_shapes, benchmark_shapes
from .sections import Context, Failed, Result

_RESTARTS = 8
_SILENCE = 15.0, 45.0  # seconds that no row takes, nor the import of torch: a third of the limit between these
_MARGIN = 3.0  # seconds before the limit at which no row is begun


@dataclass
class Rows:
    """What workers have measured so far, for the report."""

    context: Context
    result: Result
    shapes: Sequence[Shape]
    rows: list[dict[str, Any]] = field(default_factory=list)
    begun: bool = False  # a row that has not ended

    def __post_init__(self) -> None:
        self.result.details.update(rows=self.rows)
        self._tell()

    def take(self, line: str) -> None:
        """What a worker says."""
        facts = json_line(line) or {}
        if "begun" in facts:
            self.begun = True
        elif "row" in facts:
            self.add(facts["row"])

    def add(self, row: dict[str, Any]) -> None:
        self.begun = False
        self.rows.append(row)
        self._tell()
        self.context.save()

    def _tell(self) -> None:
        self.result.details["not_reached"] = [str(shape) for shape in self.shapes[len(self.rows) :]]


def measure(
    context: Context, result: Result, limit: float, task: str, shapes: Sequence[Shape], request: dict[str, Any]
) -> None:
    """Has a worker measure shape after shape until the time is up; one that it hangs or crashes in is marked and left.

    The rows come into ``result.details`` one by one.
    """
    context.need_library()
    end = context.clock() + limit
    found = Rows(context, result, shapes)
    for _ in range(_RESTARTS + 1):
        first, left = len(found.rows), end - context.clock()
        if first == len(shapes) or left <= _MARGIN:
            break
        asked = {**request, "device": context.device, "shapes": shapes[first:], "seconds": left - _MARGIN}
        finished = context.run(
            [sys.executable, "-m", "acceptance.worker", task, json.dumps(asked)],
            limit=left,
            silence=min(max(_SILENCE[0], limit / 3), _SILENCE[1]),
            cwd=context.out,
            env=context.environment(),
            on_line=found.take,
        )
        if finished.returncode == 0 or (finished.stopped and context.clock() >= end - 0.5):
            break  # out of time, perhaps in its last row
        why = finished.stopped or f"the process ended with {finished.returncode}"
        if found.begun:
            found.add({"shape": shapes[len(found.rows)]._asdict(), "error": why, "output": finished.output})
        elif len(found.rows) == first:
            result.details["output"] = finished.output
            raise Failed(f"the worker did not begin: {why}")
    _judge(result, found.rows, len(shapes))


def _judge(result: Result, rows: list[dict[str, Any]], of: int) -> None:
    bad = [row for row in rows if row.get("error") or row.get("wrong")]
    result.said = f"{len(rows)} of {of} shapes"
    if not rows:
        raise Failed("no shape was reached")
    if bad:
        names = ", ".join(str(Shape(**row["shape"])) for row in bad[:3])
        raise Failed(
            f"{result.said}; {len(bad)} failed or gave other results than nn.*: {names}{', …' * (len(bad) > 3)}"
        )


def algorithms(context: Context, result: Result, limit: float) -> None:
    """Each algorithm, and what is chosen where none is forced."""
    forced = [context.algorithm] if context.algorithm else list(ALGORITHMS)
    measure(context, result, limit, "algorithms", algorithm_shapes(), {"algorithms": [None, *forced]})


def benchmark(context: Context, result: Result, limit: float) -> None:
    """Against nn.*."""
    measure(context, result, limit, "benchmark", benchmark_shapes(), {"algorithm": context.algorithm})
