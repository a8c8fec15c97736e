"""What many runs reached, on one page: a table with a line for each recipe, a picture, and the commands.

Runs of one recipe on several seeds are one line, and those with the backend nn stand beside those with fusedrnn.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .data import SOURCES
from .errors import RunFolderError
from .metrics import Spread, Summary
from .recipe import Recipe
from .recipes import RECIPES, TEXT
from .run_folder import RunFolder, Settings, write_atomically
from .settings import differences

_COLORS = {"fused": "#3b6fb6", "nn": "#e08a2e", "reference": "#4f9d69"}
_TITLES = {"fused": "fusedrnn", "nn": "nn.*", "reference": "reference"}


class Machine(NamedTuple):
    """What two runs must share for their times to compare."""

    threads: int
    torch: str
    fusedrnn: str
    isa: str
    device: str
    processes: int

    @classmethod
    def of(cls, settings: Settings) -> Machine:
        return cls(*(getattr(settings, name) for name in cls._fields))

    def __str__(self) -> str:
        place = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
        if self.device != "cpu":
            place = f"{self.device}, {place}"
        if self.processes > 1:
            place = f"{self.processes} processes, each {place}"
        return f"{place}, torch {self.torch}, fusedrnn {self.fusedrnn}, kernels for {self.isa}"

    @property
    def program(self) -> list[str]:
        """How a command starts that trains in so many processes."""
        if self.processes == 1:
            return ["fusedrnn"]
        return ["torchrun", f"--nproc-per-node={self.processes}", "-m", "fusedrnn"]

    @property
    def options(self) -> list[str]:
        """What the command is told."""
        return ["--threads", str(self.threads), *([] if self.device == "cpu" else ["--device", self.device])]


@dataclass(frozen=True)
class FinishedRun:
    """A run folder whose run has come to its end."""

    path: Path
    recipe: Recipe
    settings: Settings
    summary: Summary


@dataclass(frozen=True)
class Line:
    """The runs of one recipe on one machine."""

    recipe: Recipe
    machine: Machine
    runs: Mapping[str, Mapping[int, FinishedRun]]
    """By backend and, in rising order, by seed."""

    @property
    def name(self) -> str:
        """The recipe's, with the fields that were changed."""
        changes = [change for change in differences(*self._told) if not change.startswith("name=")]
        return ", ".join([self.recipe.name, *changes])

    def values(self, backend: str) -> list[float]:
        return [run.summary.value for run in self.runs.get(backend, {}).values()]

    def seconds(self, backend: str) -> list[float]:
        return [run.summary.seconds for run in self.runs.get(backend, {}).values()]

    @cached_property
    def speedups(self) -> list[float]:
        """The seconds with the backend nn over those with fusedrnn, for each seed that ran with both."""
        fused, nn = self.runs.get("fused", {}), self.runs.get("nn", {})
        return [nn[seed].summary.seconds / run.summary.seconds for seed, run in fused.items() if seed in nn]

    @property
    def commands(self) -> list[str]:
        """What trains these runs again."""
        recipe, base = self._told
        what = base.name if base.name in RECIPES else recipe.data
        told = [word for setting in differences(recipe, base) for word in ("--set", setting)]
        lines = []
        for backend, runs in self.runs.items():
            start = [*self.machine.program, "train", what, *told, *self.machine.options]
            start += [] if backend == "fused" else ["--backend", backend]
            seeds = list(runs)
            several = len(seeds) > 1 and seeds == list(range(len(seeds)))
            ends = [["--seeds", str(len(seeds))]] if several else [["--seed", str(seed)] for seed in seeds]
            lines += [shlex.join([*start, *end]) for end in ends]
        return lines

    @property
    def _told(self) -> tuple[Recipe, Recipe]:
        """The recipe, and the one that the command line starts from, which reads a text of one's own or a known one."""
        recipe = self.recipe
        if recipe.data not in SOURCES:  # where a file lies is nobody else's business
            recipe = replace(recipe, data=Path(recipe.data).name)
        if recipe.name in RECIPES:
            return recipe, RECIPES[recipe.name]
        if recipe.data in SOURCES:
            return recipe, next(known for known in RECIPES.values() if known.data == recipe.data)
        return recipe, replace(TEXT, name=Path(recipe.data).stem, data=recipe.data)


def gather(paths: Iterable[str | Path]) -> list[Line]:
    """Reads the runs in some folders, each a run folder or one that holds such, at any depth.

    Returns:
        a line for each recipe and machine; recipes in the order of ``fusedrnn recipes``, others after them by name.

    Raises:
        RunFolderError: a folder holds no run, a run is not finished or cannot be read, or two runs have the same
            recipe, machine, backend and seed.
    """
    found: dict[tuple[Machine, Recipe], dict[str, dict[int, FinishedRun]]] = {}
    known: dict[Path, Path] = {}
    for path in paths:
        for folder in _run_folders(Path(path)):
            if known.setdefault(folder.resolve(), folder) is not folder:
                continue  # named twice
            run = _read(RunFolder(folder))
            key = Machine.of(run.settings), replace(run.recipe, source="", measured="")
            seeds = found.setdefault(key, {}).setdefault(run.settings.backend, {})
            other = seeds.setdefault(run.settings.seed, run)
            if other is not run:
                raise RunFolderError(
                    f"{other.path} and {run.path} hold the same run, {run.recipe.name} with the backend "
                    f"{run.settings.backend} and the seed {run.settings.seed}: leave one of them out"
                )
    lines = [_line(machine, runs) for (machine, _), runs in found.items()]
    ranks = {name: rank for rank, name in enumerate(RECIPES)}
    return sorted(lines, key=lambda line: (line.machine, ranks.get(line.recipe.name, len(ranks)), line.name))


def _line(machine: Machine, runs: Mapping[str, Mapping[int, FinishedRun]]) -> Line:
    ordered = {backend: dict(sorted(runs[backend].items())) for backend in _TITLES if backend in runs}
    first = next(iter(next(iter(ordered.values())).values()))
    return Line(first.recipe, machine, ordered)


def _run_folders(path: Path) -> list[Path]:
    """The run folders in a folder, sorted; a run folder itself is the only one in it."""
    found = []
    for name, folders, files in os.walk(path):
        if {"summary.json", "checkpoint.pt"} & set(files):
            found.append(Path(name))
            folders.clear()
    if not found:
        raise RunFolderError(
            f"{path} holds no run: expected a folder that `fusedrnn train` wrote, or one with such folders in it"
            if path.is_dir()
            else f"{path} is no folder"
        )
    return sorted(found)


def _read(folder: RunFolder) -> FinishedRun:
    checkpoint = folder.load_checkpoint()
    recipe, done = checkpoint.recipe, len(checkpoint.state["history"])
    if done < recipe.epochs or not folder.summary.is_file():
        raise RunFolderError(
            f"{folder.path} is not finished, {done} of {recipe.epochs} epochs are done: go on with it (fusedrnn train "
            f"--resume {folder.path}), or leave it out"
        )
    return FinishedRun(folder.path, recipe, checkpoint.settings, _read_summary(folder, recipe))


def _read_summary(folder: RunFolder, recipe: Recipe) -> Summary:
    try:
        content = json.loads(folder.summary.read_text(encoding="utf-8"))
        summary = Summary(**{field.name: content[field.name] for field in fields(Summary)})
        whole = summary.recipe == recipe.name and summary.value + 0 == summary.value and summary.seconds > 0
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{folder.summary} is damaged, or no summary of this program") from error
    if not whole:
        raise RunFolderError(f"{folder.summary} is not the summary of {folder.checkpoint}")
    return summary


def markdown(lines: Sequence[Line], picture: str = "") -> str:
    """The page.

    Args:
        picture: the path of what :func:`draw` drew, as seen from the page.
    """
    text = ["# Results", "", *_ABOUT]
    if picture:
        text += ["", f"![Values of every seed, targets, and times of nn.* over those of fusedrnn]({picture})"]
    for machine in dict.fromkeys(line.machine for line in lines):
        here = [line for line in lines if line.machine == machine]
        text += ["", f"## {machine}", "", *_table(here)]
        text += ["", "Commands:", "", *(f"    {command}" for line in here for command in line.commands)]
    sources = dict.fromkeys(
        (line.recipe.name, line.recipe.source) for line in lines if line.recipe.source != TEXT.source
    )
    if sources:
        text += ["", "## Where the figures come from", "", *(f"- {name}: {source}" for name, source in sources)]
    return "\n".join(text) + "\n"


_ABOUT = """\
Values are of the last epoch: the mean over the seeds ± the standard deviation, with the lowest and the highest in
brackets. The figure is the one to beat, as the recipe states it. Seconds, the median over the seeds, are those of all
epochs with their validation. Times faster is the median, over the seeds that ran with both, of the seconds with nn.*
over those with fusedrnn, with the lowest and the highest; a wide range is a machine's that did other work too.
`fusedrnn report` writes this page from run folders.
""".splitlines()


def _table(lines: Sequence[Line]) -> Iterator[str]:
    backends = [backend for backend in _TITLES if any(backend in line.runs for line in lines)]
    columns = ["recipe", "metric", "figure", *(_TITLES[backend] for backend in backends)]
    columns += [f"seconds, {_TITLES[backend]}" for backend in backends]
    faster = any(line.speedups for line in lines)
    columns += ["times faster"] if faster else []
    yield _row(columns)
    yield "|---" * len(columns) + "|"
    for line in lines:
        target = line.recipe.target
        cells = [line.name, line.recipe.metric, "" if target is None else f"{target:g}"]
        cells += [_spread(line.values(backend), line.recipe) for backend in backends]
        cells += [_median(line.seconds(backend)) for backend in backends]
        cells += [_range(line.speedups)] if faster else []
        yield _row(cells)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _spread(values: Sequence[float], recipe: Recipe) -> str:
    if not values:
        return ""
    spread = Spread.of(values)
    missed = "" if recipe.reached(spread.mean) else ", missed"
    if spread.standard_deviation is None:
        return f"{spread.mean:.4f}, 1 seed{missed}"
    ends = f"{spread.lowest:.4f} to {spread.highest:.4f}"
    return f"{spread.mean:.4f} ± {spread.standard_deviation:.4f} ({ends}), {len(values)} seeds{missed}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}" if values else ""


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    several = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{several}"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draws the values of every seed against the targets, and the times faster, as a PNG.

    Raises:
        RunFolderError: the file cannot be written.
    """
    # Here, so that the package is of use without the extra [lm]. A Figure of its own needs no display.
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(line.recipe.metric for line in lines))
    heights = [sum(line.recipe.metric == metric for line in lines) for metric in metrics]
    figure = Figure(figsize=(10, 1.2 * len(metrics) + 0.42 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(metrics), 2, squeeze=False, height_ratios=[height + 1 for height in heights])
    for metric, (values, speedups) in zip(metrics, panels, strict=True):
        here = [line for line in lines if line.recipe.metric == metric]
        _draw_values(values, here)
        values.set_xlabel(f"{metric} ({'lower' if here[0].recipe.lower_is_better else 'higher'} is better)")
        _draw_speedups(speedups, here)
    handles = {label: h for axes in panels[:, 0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getbuffer())


def _draw_values(axes: Any, lines: Sequence[Line]) -> None:
    for y, line in enumerate(lines):
        for backend, shift in zip(_COLORS, (-0.12, 0.12, 0.3), strict=True):
            if values := line.values(backend):
                color, title = _COLORS[backend], _TITLES[backend]
                axes.plot(values, [y + shift] * len(values), ".", color=color, alpha=0.5)
                axes.plot(statistics.fmean(values), y + shift, "d", color=color, label=f"{title}, mean of the seeds")
        if line.recipe.target is not None:
            axes.plot([line.recipe.target] * 2, [y - 0.35, y + 0.35], color="#222222", label="figure to beat")
    _name_lines(axes, [line.name for line in lines])


def _draw_speedups(axes: Any, lines: Sequence[Line]) -> None:
    for y, line in enumerate(lines):
        if line.speedups:
            bars = axes.barh(y, statistics.median(line.speedups), 0.6, color=_COLORS["fused"])
            axes.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=9)
            axes.plot(line.speedups, [y] * len(line.speedups), ".", color="#222222", alpha=0.6)
    axes.axvline(1.0, color="#222222", linewidth=1)
    axes.set_xlabel("times faster than nn.*")
    axes.set_xlim(left=0)
    axes.margins(x=0.15)
    _name_lines(axes, [""] * len(lines))


def _name_lines(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
