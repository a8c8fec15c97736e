"""The tables of a run as Markdown, for a page of documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .layers import geometric_mean
from .masks import COSTS, NN_PACKED, MaskRow
from .report import Results
from .subjects import TITLES, Row


def markdown(results: Results) -> str:
    """The sections "layers" and "steps", ratios with GFLOP/s in brackets, and "masks"; ~ marks what was too noisy."""
    lines: list[str] = []
    for number in sorted({row.threads for row in results.get("layers", [])}):
        rows = [row for row in results["layers"] if row.threads == number]
        lines += [f"{_threads(number)}:", "", *_table("B, T, I, H", rows, [str(row.shape) for row in rows]), ""]
    for number in sorted({row.threads for row in results.get("steps", [])}):
        rows = [row for row in results["steps"] if row.threads == number]
        lines += [f"One step, {_threads(number)}:", "", *_steps(rows), ""]
    for number in sorted({row.threads for row in results.get("masks", [])}):
        rows = [row for row in results["masks"] if row.threads == number]
        lines += [f"Masks, inference / training, {_threads(number)}:", "", *_masks(rows), ""]
    return "\n".join(lines)


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _text(row: Row) -> str:
    return f"{'~' if row.timing.noise else ''}{row.timing.ratio:.2f} ({row.gflops or 0:.0f})"


def _table(corner: str, rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """A line for each name of a row, a column for each cell and task, and the geometric means below."""
    columns = list(dict.fromkeys((row.cell, row.task) for row in rows))
    yield f"| {corner} | " + " | ".join(f"{TITLES[cell]} {task}" for cell, task in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    texts = {(name, row.cell, row.task): _text(row) for name, row in zip(names, rows, strict=True)}
    for name in dict.fromkeys(names):
        cells = (texts.get((name, *column), "") for column in columns)
        yield f"| {name.replace(',', ', ')} | " + " | ".join(cells) + " |"
    means = (geometric_mean([r.timing.ratio for r in rows if (r.cell, r.task) == column]) for column in columns)
    yield "| geometric mean | " + " | ".join(f"{mean:.2f}" for mean in means) + " |"


def _masks(rows: Sequence[MaskRow]) -> Iterator[str]:
    """A line for each cell and shape; in each column all tasks."""
    yield "| cell | B, T, I, H | " + " | ".join((*COSTS, NN_PACKED, "nn/fused, packed")) + " |"
    yield "|---" * (len(COSTS) + 4) + "|"
    for cell, shape in dict.fromkeys((row.cell, row.shape) for row in rows):
        tasks = [row for row in rows if (row.cell, row.shape) == (cell, shape)]
        columns = [[row.cost(call) for row in tasks] for call in (*COSTS, NN_PACKED)]
        columns.append([row.timing.ratio for row in tasks])
        marks = ["~" if row.timing.noise else "" for row in tasks]
        texts = (" / ".join(f"{m}{v:.2f}" for m, v in zip(marks, values, strict=True)) for values in columns)
        yield f"| {TITLES[cell]} | {str(shape).replace(',', ', ')} | " + " | ".join(texts) + " |"


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each cell, with microseconds of fusedrnn in brackets."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    yield "| cell | " + " | ".join(tasks) + " |"
    yield "|---" * (len(tasks) + 1) + "|"
    for cell in dict.fromkeys(row.cell for row in rows):
        timings = [row.timing for row in rows if row.cell == cell]
        cells = (f"{'~' if t.noise else ''}{t.ratio:.2f} ({t.fused_ms * 1e3:.1f} us)" for t in timings)
        yield f"| {TITLES[cell]} | " + " | ".join(cells) + " |"
