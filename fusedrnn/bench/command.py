"""The command line of the benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from ..info import info
from . import measure, page, plot, report
from .subjects import LARGE, QUICK_SHAPES, SHAPES, TITLES, Plan, Shape

SECTIONS = {
    "layers": "layers: nn.* / fusedrnn, inference and training",
    "steps": "steps: nn.X against X, nn.XCell against XCell; B = T = 1, I = H = 256",
    "masks": "masks: time over that of the call without, of a token where entries end early (lengths T/2 to T)",
    "memory": "memory: peak of a training step, without input and weights",
    "accuracy": "accuracy: float32 against float64, largest difference over largest value",
    "phases": "phases: where the time of fusedrnn goes",
    "end-to-end": "end to end: an epoch of hn-gru, 50 tokens of generation",
}


class _ShapeType(click.ParamType):
    name = "B,T,I,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shape:
        if isinstance(value, Shape):
            return value
        try:
            sizes = [int(size) for size in value.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) != 4 or min(sizes) < 1:
            self.fail(f"expected four sizes B,T,I,H of at least 1, such as 64,16,64,64, got {value!r}", param, ctx)
        return Shape(*sizes)


class _SectionsType(click.ParamType):
    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(value.split(",")) if isinstance(value, str) else value
        for name in names:
            if name not in SECTIONS:
                self.fail(f"expected some of {','.join(SECTIONS)}, got {name!r}", param, ctx)
        return names


def _distinct(values: tuple[Any, ...], default: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values or default))


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cell", "cells", type=click.Choice([*TITLES]), multiple=True, help="May be repeated.  [default: all]")
@click.option("--shape", "shapes", type=_ShapeType(), multiple=True, help="May be repeated.  [default: seven shapes]")
@click.option("--threads", type=click.IntRange(1), multiple=True, help="May be repeated.  [default: 1 and all]")
@click.option("--seconds", type=click.FloatRange(0), help="For each comparison.  [default: 1.5; quick: 0.25]")
@click.option("--quick", is_flag=True, help="Small shapes, less than a minute.")
@click.option(
    "--sections",
    type=_SectionsType(),
    default="layers,steps",
    show_default=True,
    help=f"Some of {','.join(SECTIONS)}.",
)
@click.option("--phases", is_flag=True, help="Also where the time of forward and backward goes.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results there.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write benchmark.json, benchmark.md and benchmark.png into this folder.",
)
def bench(
    cells: tuple[str, ...],
    shapes: tuple[Shape, ...],
    threads: tuple[int, ...],
    seconds: float | None,
    quick: bool,
    sections: tuple[str, ...],
    phases: bool,
    json_path: Path | None,
    out: Path | None,
) -> None:
    """Compare fusedrnn with nn.LSTM, nn.GRU and nn.RNN on this machine.

    Runs of both alternate in one process, and medians are compared: a ratio above 1 means that fusedrnn is faster.
    Comparisons that the machine is too noisy for are marked, and listed in the end.
    """
    for path in (out, json_path and json_path.parent):
        if path:
            path.mkdir(parents=True, exist_ok=True)
    numbers = _distinct(threads, (1, torch.get_num_threads()))
    plan = Plan(
        cells=_distinct(cells, tuple(TITLES)),
        shapes=_distinct(shapes, QUICK_SHAPES if quick else SHAPES),
        threads=numbers,
        seconds=(0.25 if quick else 1.5) if seconds is None else seconds,
        least=6 if quick else 8,
        peaks=_peaks(numbers),
    )
    click.echo(f"{info()}\n{_machine(plan)}")
    names = _distinct((*sections, *(["phases"] if phases else [])), ())
    results = {name: _run(name, _plan_of(name, plan, bool(shapes))) for name in names}
    for text in report.verdict(results):
        click.echo(text)
    _write(results, plan, json_path, out)


def _peaks(numbers: tuple[int, ...]) -> dict[int, float]:
    peaks = {}
    for number in numbers:
        with measure.threads(number):
            peaks[number] = measure.fma_peak()
    return peaks


def _machine(plan: Plan) -> str:
    peaks = ", ".join(f"{peak:.0f} on {number}" for number, peak in (plan.peaks or {}).items())
    return f"processor:    {report.processor()}\nFMA peak:     GFLOP/s by threads: {peaks}"


def _plan_of(section: str, plan: Plan, shapes_given: bool) -> Plan:
    """The plan with what a section does otherwise unless it is told."""
    if section == "memory" and not shapes_given:
        return replace(plan, shapes=(LARGE,))
    return plan


def _run(section: str, plan: Plan) -> list[Any]:
    """Runs a section and prints its rows as they come."""
    # When it is asked for: end-to-end needs more libraries than the others.
    run: Callable[[Plan], Any] = importlib.import_module(f"{__package__}.{section.replace('-', '_')}").run
    click.echo(f"\n{SECTIONS[section]}\n\n{report.header(section)}")
    rows = []
    for row in run(plan):
        rows.append(row)
        click.echo(report.line(section, row))
    for text in report.summary(section, rows):
        click.echo(text)
    return rows


def _write(results: report.Results, plan: Plan, json_path: Path | None, out: Path | None) -> None:
    peaks = plan.peaks or {}
    written = [path for path in (json_path, out and out / "benchmark.json") if path]
    for path in written:
        report.write_json(path, peaks, results)
    if out:
        (out / "benchmark.md").write_text(page.markdown(results), encoding="utf-8")
        written.append(out / "benchmark.md")
        if results.get("layers"):
            number = max(plan.threads)
            title = f"{report.processor()}, {number} thread{'s' if number > 1 else ''}, torch {torch.__version__}"
            plot.draw(results["layers"], title, out / "benchmark.png")
            written.append(out / "benchmark.png")
    if written:
        click.echo("\nwritten: " + ", ".join(map(str, written)))
