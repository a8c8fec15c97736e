"""What a training run leaves behind: summary.json, metrics.jsonl, curves.png and checkpoint.pt in one folder.

Every file is replaced in one step, so that a run that is killed leaves no half of one.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import fusedrnn

from .data import Vocabulary
from .errors import RunFolderError
from .model import Backend, StatefulModel
from .recipe import Recipe

_FORMAT = 2  # of checkpoint.pt: raised when an older program could no longer read it, or this one an older file


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its recipe; the fields from ``threads`` to ``processes`` decide the last bits of
    its weights.

    Of several processes, ``processes``, each has so many ``threads``.
    """

    backend: Backend
    seed: int
    checkpoint_every: int | None  # steps, besides the end of each epoch
    threads: int
    torch: str
    fusedrnn: str
    isa: str  # of fusedrnn's CPU kernels
    device: str = "cpu"
    processes: int = 1
    token_file: str | None = None
    tensorboard: bool = False

    @classmethod
    def of_this_process(
        cls,
        backend: Backend,
        seed: int,
        checkpoint_every: int | None,
        device: str = "cpu",
        processes: int = 1,
        token_file: str | None = None,
        tensorboard: bool = False,
    ) -> Settings:
        """With the versions that are installed and the threads that torch is set to."""
        return cls(
            backend=backend,
            seed=seed,
            checkpoint_every=checkpoint_every,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),  # from a class of torch's own
            fusedrnn=fusedrnn.__version__,
            isa=torch.ops.fusedrnn.cpu_isa(),
            device=device,
            processes=processes,
            token_file=token_file,
            tensorboard=tensorboard,
        )

    def changes(self, then: Settings) -> str:
        """In which fields that decide the last bits these settings differ from those of before, in words."""
        names = ("threads", "torch", "fusedrnn", "isa", "device", "processes")
        pairs = [(name, getattr(self, name), getattr(then, name)) for name in names]
        return ", ".join(f"{name} {now} (was {before})" for name, now, before in pairs if now != before)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, what it takes to use it, and what it takes to train it on."""

    model: StatefulModel
    vocabulary: Vocabulary
    recipe: Recipe
    settings: Settings
    state: dict[str, Any]
    """Of the trainer: see :meth:`fusedrnn.lm.Trainer.state_dict`."""


class RunFolder:
    """The files of one run. :meth:`create` makes the folder, the constructor only names it.

    Args:
        path: the folder.
        writes: False makes all that would write do nothing, as is right for all but one of several processes.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.summary = self.path / "summary.json"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.checkpoint = self.path / "checkpoint.pt"

    @classmethod
    def create(cls, path: str | Path, *, writes: bool = True) -> RunFolder:
        """Makes the folder and its parents. An empty folder may be there already, and one where a run was killed that
        had not written its first checkpoint.

        Raises:
            RunFolderError: the path holds something, which is left alone.
            OSError: the folder cannot be made.
        """
        folder = cls(path, writes=writes)
        if not writes:
            return folder
        if folder.checkpoint.is_file():
            raise RunFolderError(
                f"{folder.path} holds a run already: go on with it (--resume {folder.path}), choose another folder "
                "(--out), or remove it first"
            )
        if folder.path.exists() and not (folder.path.is_dir() and set(folder.path.iterdir()) <= folder._leftovers()):
            raise RunFolderError(f"{folder.path} exists already: choose another folder (--out), or remove it first")
        folder.path.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.path.parent)
        return folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing a run into the folder; the system takes the lock off one that dies.

        What killed processes have left half written is removed.

        Raises:
            RunFolderError: another process holds the lock.
        """
        if not self.writes:
            yield
            return
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(f"{self.path} is in use: another process writes its run into it") from error
            except OSError:
                pass  # a file system without locks
            for path in self._leftovers():
                path.unlink(missing_ok=True)
            yield
        finally:
            os.close(folder)

    def _leftovers(self) -> set[Path]:
        names = "|".join(re.escape(path.name) for path in (self.summary, self.metrics, self.curves, self.checkpoint))
        return {path for path in self.path.iterdir() if re.fullmatch(rf"\.({names})\.\d+", path.name)}

    def write_metrics(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Writes metrics.jsonl, a line per epoch, whole or not at all."""
        self._write(self.metrics, "".join(json.dumps(metrics) + "\n" for metrics in history).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, whole or not at all."""
        self._write(self.summary, (json.dumps(summary, indent=2) + "\n").encode())

    def save_checkpoint(self, state: Mapping[str, Any], settings: Settings) -> None:
        """Writes checkpoint.pt, whole or not at all: until the new one is complete, the old one stays.

        Args:
            state: of :meth:`fusedrnn.lm.Trainer.state_dict`.

        Raises:
            RunFolderError: it could not be written. The old one is still there.
        """
        if not self.writes:
            return
        buffer = io.BytesIO()  # torch.save reports a full disk in words of its own
        torch.save({"format": _FORMAT, "settings": asdict(settings), "trainer": dict(state)}, buffer)
        write_atomically(self.checkpoint, buffer.getbuffer())

    def _write(self, path: Path, content: bytes | memoryview) -> None:
        if self.writes:
            write_atomically(path, content)

    def require_checkpoint(self) -> None:
        """Raises RunFolderError where there is no checkpoint.pt."""
        if not self.checkpoint.is_file():
            raise RunFolderError(f"{self.path} is not a run folder: it holds no {self.checkpoint.name}")

    def load_checkpoint(self) -> Checkpoint:
        """Reads checkpoint.pt; runs no code that the file might hold. The model is on the CPU, in evaluation mode.

        Raises:
            RunFolderError: there is no checkpoint, or the file is damaged or none of this package.
        """
        self.require_checkpoint()
        try:
            content = _read(self.checkpoint)
            if content["format"] != _FORMAT:
                raise RunFolderError(
                    f"{self.checkpoint} has format {content['format']}, and this fusedrnn reads format {_FORMAT}"
                )
            settings = Settings(**content["settings"])
            state = content["trainer"]
            self._require_known_fields(state["recipe"], settings)
            recipe = Recipe(**state["recipe"])
            vocabulary = Vocabulary(state["vocabulary"])
            model = recipe.make_model(len(vocabulary), settings.backend)
            model.load_state_dict(state["model"])
        except (RunFolderError, PermissionError):
            raise
        except Exception as error:  # which one, depends on where the damage is
            raise RunFolderError(f"{self.checkpoint} is damaged, or no checkpoint of this program") from error
        return Checkpoint(model.eval(), vocabulary, recipe, settings, state)

    def _require_known_fields(self, recipe: Mapping[str, Any], settings: Settings) -> None:
        if unknown := recipe.keys() - {field.name for field in fields(Recipe)}:
            raise RunFolderError(
                f"{self.checkpoint} was written by fusedrnn {settings.fusedrnn}, whose recipes say more than this "
                f"fusedrnn {fusedrnn.__version__} knows ({', '.join(sorted(unknown))})"
            )

    def plot(self, history: Sequence[Mapping[str, float]], metric: str, target: float | None) -> None:
        """Draws curves.png: the two losses, and the metric with its target if any, against the epoch."""
        if not self.writes:
            return
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
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        write_atomically(self.curves, picture.getbuffer())


def _read(path: Path) -> dict[str, Any]:
    """What torch.save wrote, tensors and plain values only, every byte of which is still the same."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's doubts about a foreign file end in an error
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:  # torch leaves the checksums alone
                raise zipfile.BadZipFile("a checksum is wrong")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replaces a file in one step, so that a reader, a crash, or a loss of power never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk, where folders can be opened and the file system offers it."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)
