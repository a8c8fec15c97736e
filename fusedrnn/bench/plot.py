"""The picture of a run: how many times faster fusedrnn is, a bar for each shape and cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .layers import geometric_mean
from .subjects import TITLES, Row, Shape

_COLORS = {"lstm": "#3b6fb6", "gru": "#e08a2e", "rnn_relu": "#4f9d69", "rnn_tanh": "#9a6fb0"}
_TASKS = {"inference": "inference", "training": "training: forward and backward"}


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws rows of the section "layers", those on the most threads, as a PNG.

    Args:
        title: the line above the picture: what ran.
    """
    # Here, so that the package is of use without the extra [lm]. A Figure of its own needs no display.
    from matplotlib.figure import Figure

    most = max(row.threads for row in rows)
    rows = [row for row in rows if row.threads == most]
    tasks = [task for task in _TASKS if any(row.task == task for row in rows)]
    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure = Figure(figsize=(10, 0.9 + 2.7 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, task in zip(panels, tasks, strict=True):
        _panel(axes, [row for row in rows if row.task == task], shapes)
        axes.set_title(_TASKS[task], loc="left", fontsize=11)
    panels[-1].set_xticks([*range(len(shapes)), len(shapes) + 0.3], [*map(_label, shapes), "geometric\nmean"])
    note = "B, T: rows and steps; I, H: input features and hidden units"
    if any(row.timing.noise for row in rows):
        note += "; pale: too noisy to conclude"
    panels[-1].set_xlabel(note, fontsize=9, color="#555555")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#555555")
    figure.savefig(path, format="png", dpi=160)


def _label(shape: Shape) -> str:
    B, T, I, H = shape
    return f"B {B}, T {T}\nI {I}, H {H}"


def _panel(axes: Any, rows: Sequence[Row], shapes: Sequence[Shape]) -> None:
    names = [cell for cell in TITLES if any(row.cell == cell for row in rows)]
    width = 0.86 / len(names)
    axes.axvline(len(shapes) - 0.35, color="#cccccc", linewidth=0.8)
    for i, cell in enumerate(names):
        of_cell = [row for row in rows if row.cell == cell]
        ratios = [row.timing.ratio for row in of_cell]
        heights = [*ratios, geometric_mean(ratios)]
        offset = (i - (len(names) - 1) / 2) * width
        places = [place + offset for place in (*(shapes.index(row.shape) for row in of_cell), len(shapes) + 0.3)]
        bars = axes.bar(places, heights, width * 0.92, color=_COLORS[cell], label=TITLES[cell])
        for bar, row in zip(bars, of_cell, strict=False):
            bar.set_alpha(0.35 if row.timing.noise else 1.0)
        labels = [f"{height:.2f}" if height < 1.95 else f"{height:.1f}" for height in heights]
        axes.bar_label(bars, labels, fontsize=6.5, padding=1, color="#333333")
    axes.axhline(1.0, color="#222222", linewidth=1.2)
    axes.set_ylabel("times faster than nn.*", fontsize=9)
    axes.margins(x=0.01, y=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
