"""What a run of the benchmark says: lines of a table as they are measured, summaries, and a JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..info import info
from .accuracy import LIMIT
from .layers import geometric_mean, scaling
from .masks import COSTS, NN_PACKED, PLAIN
from .subjects import Row

Results = dict[str, list[Any]]
"""The rows of each section that was run."""

COMPARISONS = ("layers", "steps", "masks", "end-to-end")
"""Sections whose rows are :class:`~fusedrnn.bench.subjects.Row`."""


class Column(NamedTuple):
    title: str
    width: int  # negative: left-aligned after two blanks
    text: Callable[[Any], str]


def _optional(value: float | None, format: str) -> str:
    return "-" if value is None else f"{value:{format}}"


def _noise(row: Row) -> str:
    return "noisy" if row.timing.noise else ""


def _cost(call: str) -> Callable[[Any], str]:
    return lambda row: f"{row.cost(call):.2f}"


_CELL = Column("cell", -12, lambda r: r.cell)
_SHAPE = Column("B,T,I,H", -18, lambda r: str(r.shape))
_THREADS = Column("threads", 8, lambda r: str(r.threads))
_RATIO = [
    Column("ratio", 8, lambda r: f"{r.timing.ratio:.2f}"),
    Column("spread", 8, lambda r: f"{r.timing.spread:.1%}"),
    Column("A/A", 7, lambda r: f"{r.timing.repeat:.1%}"),
    Column("", -7, _noise),
]
_SPEED = [
    Column("GF/s", 8, lambda r: _optional(r.gflops, ".0f")),
    Column("of peak", 8, lambda r: _optional(r.peak_share, ".0%")),
]
_MIB = 1 << 20

TABLES: dict[str, list[Column]] = {
    "layers": [
        *(_CELL, _SHAPE, _THREADS, Column("task", -13, lambda r: r.task)),
        Column("nn ms", 10, lambda r: f"{r.timing.nn_ms:.3f}"),
        Column("fused ms", 10, lambda r: f"{r.timing.fused_ms:.3f}"),
        *(*_SPEED, *_RATIO),
    ],
    "steps": [
        *(_CELL, _THREADS, Column("one step", -25, lambda r: r.task)),
        Column("nn us", 10, lambda r: f"{r.timing.nn_ms * 1e3:.1f}"),
        Column("fused us", 10, lambda r: f"{r.timing.fused_ms * 1e3:.1f}"),
        *(*_SPEED, *_RATIO),
    ],
    "masks": [
        *(_CELL, _SHAPE, _THREADS, Column("task", -13, lambda r: r.task)),
        Column("plain ms", 10, lambda r: f"{r.ms[PLAIN]:.3f}"),
        *(Column(call, len(call) + 3, _cost(call)) for call in (*COSTS, NN_PACKED)),
        *(_RATIO[0]._replace(title="nn/fused packed", width=18), *_RATIO[1:]),
    ],
    "end-to-end": [
        *(_CELL, _SHAPE, _THREADS, Column("program", -18, lambda r: r.task)),
        Column("nn ms", 10, lambda r: f"{r.timing.nn_ms:.1f}"),
        Column("fused ms", 10, lambda r: f"{r.timing.fused_ms:.1f}"),
        Column("nn tok/s", 12, lambda r: f"{r.tokens / r.timing.nn_ms * 1e3:,.0f}"),
        Column("fused tok/s", 12, lambda r: f"{r.tokens / r.timing.fused_ms * 1e3:,.0f}"),
        *_RATIO,
    ],
    "memory": [
        *(_CELL, _SHAPE, _THREADS),
        Column("nn MiB", 10, lambda r: f"{r.nn_bytes / _MIB:.0f}"),
        Column("fused MiB", 12, lambda r: f"{r.fused_bytes / _MIB:.0f}"),
        Column("recompute MiB", 15, lambda r: "-" if r.recompute_bytes is None else f"{r.recompute_bytes / _MIB:.0f}"),
        Column("fused/nn", 10, lambda r: f"{r.fused_bytes / max(1, r.nn_bytes):.2f}"),
        Column(
            "recompute/nn",
            14,
            lambda r: "-" if r.recompute_bytes is None else f"{r.recompute_bytes / max(1, r.nn_bytes):.2f}",
        ),
    ],
    "accuracy": [
        *(_CELL, _SHAPE, _THREADS, Column("worst of", -14, lambda r: r.kind)),
        Column("tensor", -14, lambda r: r.tensor),
        Column("nn error", 10, lambda r: f"{r.nn_error:.1e}"),
        Column("fused error", 13, lambda r: f"{r.fused_error:.1e}"),
        Column("fused/nn", 10, lambda r: f"{r.ratio:.2f}"),
        Column("", -14, lambda r: "" if r.ratio <= LIMIT else f"above {LIMIT:g}"),
    ],
    "phases": [
        *(_CELL, _SHAPE, _THREADS, Column("pass", -12, lambda r: r.run)),
        Column("phase", -22, lambda r: r.phase),
        Column("ms", 10, lambda r: f"{r.ms:.3f}"),
        Column("share", 8, lambda r: f"{r.share:.1%}"),
        *(*_SPEED, Column("", -7, lambda r: "noisy" if r.noisy else "")),
    ],
}
"""The columns of each section's table."""


def header(section: str) -> str:
    return _joined([column.title for column in TABLES[section]], TABLES[section])


def line(section: str, row: Any) -> str:
    return _joined([column.text(row) for column in TABLES[section]], TABLES[section])


def _joined(texts: Sequence[str], columns: Sequence[Column]) -> str:
    fitted = (
        f"  {text}".ljust(-column.width) if column.width < 0 else text.rjust(column.width)
        for text, column in zip(texts, columns, strict=True)
    )
    return "".join(fitted).strip()


def summary(section: str, rows: Sequence[Any]) -> Iterator[str]:
    """What the rows of a section come to, as lines of text."""
    if section in ("layers", "steps"):
        yield from _means(section, rows)
    if section == "layers":
        yield from _scaling(rows)
    if section == "masks":
        yield from _worst_costs(rows)
    if section == "phases":
        yield from _loop(rows)


def _means(section: str, rows: Sequence[Row]) -> Iterator[str]:
    where = "worst shape" if section == "layers" else "worst state"
    yield ""
    yield f"{'cell':<10}{'threads':>8}  {'task':<11}{'geometric mean':>15}{where:>13}"
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cell, row.threads, row.task.partition(",")[0]), []).append(row)
    for (cell, number, task), group in groups.items():
        ratios = [row.timing.ratio for row in group]
        worst = min(group, key=lambda row: row.timing.ratio)
        name = str(worst.shape) if section == "layers" else worst.task.partition(", ")[2]
        noise = f"  ({sum(1 for row in group if row.timing.noise)} noisy)" if any(map(_noise, group)) else ""
        yield f"{cell:<10}{number:>8}  {task:<11}{geometric_mean(ratios):>15.2f}{min(ratios):>13.2f}  {name}{noise}"


def _scaling(rows: Sequence[Row]) -> Iterator[str]:
    pairs = list(scaling(rows))
    if not pairs:
        return
    few, many = pairs[0][0].threads, pairs[0][1].threads
    yield ""
    yield f"{few} to {many} threads: times faster"
    yield f"{'cell':<10}{'B,T,I,H':<17}{'task':<13}{'nn':>8}{'fused':>8}"
    for one, all_ in pairs:
        nn, fused = one.timing.nn_ms / all_.timing.nn_ms, one.timing.fused_ms / all_.timing.fused_ms
        noise = _noise(one) or _noise(all_)
        yield f"{one.cell:<10}{one.shape!s:<17}{one.task:<13}{nn:>8.2f}{fused:>8.2f}  {noise}".rstrip()


def _worst_costs(rows: Sequence[Any]) -> Iterator[str]:
    yield ""
    yield "worst of " + "".join(f"{call:>{len(call) + 3}}" for call in (*COSTS, NN_PACKED))
    for task in dict.fromkeys(row.task for row in rows):
        worst = (max(row.cost(call) for row in rows if row.task == task) for call in (*COSTS, NN_PACKED))
        texts = (f"{cost:>{len(call) + 3}.2f}" for call, cost in zip((*COSTS, NN_PACKED), worst, strict=True))
        yield f"{task:<9}" + "".join(texts)


def _loop(rows: Sequence[Any]) -> Iterator[str]:
    """The time loop where its product is large enough to keep the processor busy."""
    loops = [r for r in rows if r.phase == "loop" and r.shape.H >= 256 and r.shape.B >= 64 and r.peak_share]
    if not loops:
        return
    yield ""
    yield "time loop at H >= 256, B >= 64: share of the peak"
    yield f"{'cell':<10}{'threads':>8}  {'pass':<11}{'least':>7}{'most':>7}"
    for cell, number, name in dict.fromkeys((r.cell, r.threads, r.run) for r in loops):
        shares = [r.peak_share for r in loops if (r.cell, r.threads, r.run) == (cell, number, name)]
        noise = "  noisy" if any(r.noisy for r in loops if (r.cell, r.threads, r.run) == (cell, number, name)) else ""
        yield f"{cell:<10}{number:>8}  {name:<11}{min(shares):>7.0%}{max(shares):>7.0%}{noise}"


def verdict(results: Results) -> Iterator[str]:
    """Which comparisons the machine was too noisy for."""
    rows = [row for section in COMPARISONS for row in results.get(section, [])]
    noisy = [row for row in rows if row.timing.noise]
    if not rows:
        return
    yield ""
    if not noisy:
        yield f"Quiet enough: all {len(rows)} comparisons allow a conclusion."
        return
    yield f"Too noisy to conclude: {len(noisy)} of {len(rows)} comparisons. Repeat them with more --seconds:"
    for row in noisy:
        where = f"{row.cell} {row.shape} {row.task}, {row.threads} thread{'s' if row.threads > 1 else ''}"
        yield f"  {where}: {row.timing.noise}"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(peaks: Mapping[int, float]) -> dict[str, Any]:
    """What ran the benchmark, and the GFLOP/s that its threads can do."""
    return {
        **dataclasses.asdict(info()),
        "processor": processor(),
        "peak_gflops": {str(number): round(peak, 1) for number, peak in peaks.items()},
    }


def write_json(path: Path, peaks: Mapping[int, float], results: Results) -> None:
    content = {"machine": machine(peaks), **{section: [_plain(r) for r in rows] for section, rows in results.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _plain(row: Any) -> dict[str, Any]:
    """Fields and properties of a row, with those of its comparison beside them."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        plain |= _plain(value) if dataclasses.is_dataclass(value) else {field.name: value}
    properties = [name for name, value in vars(type(row)).items() if isinstance(value, property)]
    return {**plain, **{name: getattr(row, name) for name in properties}}
