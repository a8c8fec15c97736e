"""What a training run leaves behind: summary.json, metrics.jsonl, curves.png and checkpoint.pt in one folder."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .data import Vocabulary
from .errors import RunFolderError
from .model import Backend, LanguageModel
from .recipes import Recipe

_FORMAT = 1  # of checkpoint.pt: raised when an older program could no longer read it


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what it takes to use it."""

    model: LanguageModel
    vocabulary: Vocabulary
    recipe: Recipe


class RunFolder:
    """The files of one run. :meth:`create` makes the folder, the constructor only names it.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.summary = self.path / "summary.json"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.checkpoint = self.path / "checkpoint.pt"

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Makes the folder and its parents; an empty folder may be there already.

        Raises:
            RunFolderError: the path holds something, which is left alone.
            OSError: the folder cannot be made.
        """
        folder = cls(path)
        if folder.path.exists() and not (folder.path.is_dir() and not any(folder.path.iterdir())):
            raise RunFolderError(f"{folder.path} exists already: choose another folder (--out), or remove it first")
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, whole or not at all."""
        text = json.dumps(summary, indent=2) + "\n"
        _write_atomically(self.summary, lambda file: file.write(text.encode()))

    def save_checkpoint(self, model: LanguageModel, vocabulary: Vocabulary, recipe: Recipe, backend: Backend) -> None:
        """Writes checkpoint.pt, whole or not at all: until the new one is complete, the old one stays."""
        content = {
            "format": _FORMAT,
            "recipe": asdict(recipe),
            "backend": backend,
            "vocabulary": list(vocabulary.tokens),
            "model": model.state_dict(),
        }
        _write_atomically(self.checkpoint, lambda file: torch.save(content, file))

    def load_checkpoint(self) -> Checkpoint:
        """Reads checkpoint.pt; runs no code that the file might hold. The model is on the CPU, in evaluation mode.

        Raises:
            RunFolderError: there is no checkpoint, or the file is none of this package.
        """
        if not self.checkpoint.is_file():
            raise RunFolderError(f"{self.path} is not a run folder: it holds no {self.checkpoint.name}")
        try:
            with self.checkpoint.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's doubts about a foreign file end in an error below
                content = torch.load(file, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise RunFolderError(
                    f"{self.checkpoint} has format {content['format']}, and this fusedrnn reads format {_FORMAT}"
                )
            recipe = Recipe(**content["recipe"])
            vocabulary = Vocabulary(content["vocabulary"])
            model = recipe.make_model(len(vocabulary), content["backend"])
            model.load_state_dict(content["model"])
        except PermissionError:
            raise
        # What torch.load raises for a damaged file depends on where the damage is.
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{self.checkpoint} is damaged, or no checkpoint of this program") from error
        return Checkpoint(model.eval(), vocabulary, recipe)

    def plot(self, history: Sequence[Mapping[str, float]], metric: str, target: float | None) -> None:
        """Draws curves.png: the two losses, and the metric with its target if any, against the epoch."""
        # Here, so that the package is of use without the extra [lm]. A Figure of its own needs no display.
        from matplotlib.figure import Figure

        epochs = [metrics["epoch"] for metrics in history]
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        losses, metrics_axes = figure.subplots(1, 2)
        for name, label in (("train_loss", "training"), ("valid_loss", "validation")):
            losses.plot(epochs, [metrics[name] for metrics in history], marker=".", label=label)
        metrics_axes.plot(epochs, [metrics[metric] for metrics in history], marker=".", label="validation")
        if target is not None:
            metrics_axes.axhline(target, color="gray", linestyle="--", label=f"target {target:g}")
        for axes, label in ((losses, "cross-entropy (nats)"), (metrics_axes, metric)):
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend()
        _write_atomically(self.curves, lambda file: figure.savefig(file, format="png", dpi=120))


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step, so that a reader, or a crash, never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
