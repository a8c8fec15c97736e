"""The sections that measure: the algorithms against each other, and fusedrnn against nn.*."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from .checks import json_line
from .plan import ALGORITHMS, Shape, algorithm_shapes, benchmark_shapes
from .sections import Context, Failed, Result

_RESTARTS = 8
_SILENCE = 15.0, 45.0  # seconds that no row takes, nor the import of torch: a third of the limit between these
_MARGIN = 3.0  # seconds before the limit at which no row is begun


def measure(
    context: Context, result: Result, limit: float, task: str, shapes: Sequence[Shape], request: dict[str, Any]
) -> None:
    """Has a worker measure shape after shape until the time is up; one that it hangs or crashes in is marked and left.

    The rows come into ``result.details`` one by one.
    """
    context.need_library()
    end = context.clock() + limit
    rows: list[dict[str, Any]] = []
    result.details.update(rows=rows, not_reached=[str(shape) for shape in shapes])
    for _ in range(_RESTARTS + 1):
        first = len(rows)
        begun = False
        asked = {
            **request,
            "device": context.device,
            "shapes": shapes[first:],
            "seconds": end - context.clock() - _MARGIN,
        }
        if first == len(shapes) or asked["seconds"] <= 0:
            break

        def take(line: str) -> None:
            nonlocal begun
            facts = json_line(line)
            if facts is None:
                return
            begun = "begun" in facts
            if "row" in facts:
                rows.append(facts["row"])
                result.details["not_reached"] = [str(shape) for shape in shapes[len(rows) :]]
                context.save()

        finished = context.run(
            [sys.executable, "-m", "acceptance.worker", task, json.dumps(asked)],
            limit=max(1.0, end - context.clock()),
            silence=min(max(_SILENCE[0], limit / 3), _SILENCE[1]),
            cwd=context.out,
            env=context.environment(),
            on_line=take,
        )
        if finished.returncode == 0:
            break
        if finished.stopped and context.clock() >= end - 0.5:
            break  # in its last row
        why = finished.stopped or f"the process ended with {finished.returncode}"
        if not begun:
            result.details["output"] = finished.output
            raise Failed(f"the worker did not begin: {why}")
        rows.append({"shape": shapes[len(rows)]._asdict(), "error": why, "output": finished.output})
        result.details["not_reached"] = [str(shape) for shape in shapes[len(rows) :]]
        context.save()
    _judge(result, rows, len(shapes))


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
