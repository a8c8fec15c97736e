"""Runs: training a recipe from its seed, or from a checkpoint, to the end, with all that a run folder holds."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .data import Corpus
from .distributed import Processes, is_first_process, join_processes, local_device
from .errors import DivergedError, ResumeWarning, RunFolderError, StateError
from .metrics import EpochMetrics, Summary, summarize
from .model import Backend
from .progress import Progress
from .recipe import Recipe
from .run_folder import RunFolder, Settings
from .tensorboard_log import TensorBoardLog, require_tensorboard
from .token_file import open_corpus
from .trainer import Trainer


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    backend: Backend = "fused",
    seed: int = 0,
    quiet: bool = False,
    checkpoint_every: int | None = None,
    device: str = "cpu",
    token_file: str | Path | None = None,
    tensorboard: bool = False,
) -> Summary:
    """Runs a recipe and writes its run folder. Of several processes, see :mod:`fusedrnn.lm.distributed`, the first one
    writes.

    The folder holds metrics.jsonl (a line per epoch, :class:`EpochMetrics`), checkpoint.pt (the last good state, from
    which :func:`resume` goes on), curves.png and, when all is done, summary.json (:class:`Summary`). The same seed,
    backend, thread count and machine give the same figures. Sets the seed of torch's global generator.

    Args:
        out: a folder that does not exist yet, or is empty.
        quiet: draw no progress bar, not even on a terminal.
        checkpoint_every: write checkpoint.pt after so many steps too, not only before the first and after each epoch.
        device: "cpu", or "cuda"; each process of torchrun's takes a GPU of its own.
        token_file: keep the tokens of the text there, not in memory: see :mod:`fusedrnn.lm.token_file`.
        tensorboard: log for TensorBoard too: see :mod:`fusedrnn.lm.tensorboard_log`.

    Raises:
        RunFolderError: ``out`` holds something already, or a file in it cannot be written.
        DivergedError: the loss or a parameter is no longer finite. The folder keeps the last good checkpoint.
        DataError: the data cannot be found or read, or fill no batch.
        RecipeError: the recipe's model, the backend or the device is not valid, or the rows of a batch cannot be split
            among the processes.
        ValueError: ``checkpoint_every`` is not valid.
        LanguageModelError: logs were asked for, and TensorBoard is missing.
        OSError: the folder cannot be made.
    """
    _require_steps(checkpoint_every)
    if tensorboard:
        require_tensorboard()
    place = local_device(device)
    processes = join_processes(place)
    tokens = None if token_file is None else str(Path(token_file).resolve())
    torch.manual_seed(seed)
    corpus = _make_corpus(recipe, tokens, processes)
    model = recipe.make_model(len(corpus.vocabulary), backend).to(place)
    trainer = Trainer(model, corpus, recipe, processes)
    processes.part_ways(seed)
    folder = RunFolder.create(out, writes=processes.first)
    settings = Settings.of_this_process(backend, seed, checkpoint_every, device, processes.size, tokens, tensorboard)
    with folder.lock():
        return _run(trainer, folder, settings, None, quiet)


def resume(
    out: str | Path, *, threads: int | None = None, quiet: bool = False, checkpoint_every: int | None = None
) -> Summary:
    """Goes on with the run of a folder, from its last checkpoint to its end.

    On the same machine, with the same versions and number of threads, weights and metrics are, bit for bit, those of a
    run that was never stopped. Sets torch's number of threads and the state of its global generator.

    Args:
        threads: None for those that the run had.
        quiet: as of :func:`train`.
        checkpoint_every: as of :func:`train`; None for what the run was started with.

    Warns:
        ResumeWarning: the run is finished, or versions or threads differ.

    Raises:
        RunFolderError: there is no checkpoint, it cannot be read, the text is no longer the same, another process
            writes the run, or a file cannot be written. What the folder holds is left alone.
        DivergedError: see :func:`train`.
        ValueError: ``checkpoint_every`` is not valid.
    """
    _require_steps(checkpoint_every)
    RunFolder(out).require_checkpoint()
    folder = RunFolder(out, writes=is_first_process())
    with folder.lock():
        checkpoint = folder.load_checkpoint()
        recipe, then, history = checkpoint.recipe, checkpoint.settings, checkpoint.state["history"]
        if len(history) == recipe.epochs and folder.summary.is_file():
            _warn(folder, f"the run in {folder.path} is finished: all of its {recipe.epochs} epochs are done")
            return summarize([EpochMetrics(**metrics) for metrics in history], recipe, then)
        torch.set_num_threads(threads or then.threads)
        place = local_device(then.device)
        processes = join_processes(place)
        every = checkpoint_every or then.checkpoint_every
        now = Settings.of_this_process(
            then.backend, then.seed, every, then.device, processes.size, then.token_file, then.tensorboard
        )
        if changes := now.changes(then):
            what = f"{folder.path} goes on with {changes}"
            _warn(folder, f"{what}: weights may differ in the last bits from an unbroken run's")
        torch.manual_seed(then.seed)
        processes.part_ways(then.seed)
        trainer = Trainer(
            checkpoint.model.to(place), _make_corpus(recipe, then.token_file, processes), recipe, processes
        )
        try:
            trainer.load_state_dict(checkpoint.state)
        except StateError as error:
            raise RunFolderError(f"{folder.checkpoint} cannot be resumed: {error}") from error
        return _run(trainer, folder, now, trainer.steps, quiet)


def _make_corpus(recipe: Recipe, token_file: str | None, processes: Processes) -> Corpus:
    if token_file is None:
        return recipe.make_corpus()
    corpus = open_corpus(recipe, token_file) if processes.first else None
    processes.sum(0)  # the first one has built the file
    return corpus or open_corpus(recipe, token_file)


def _require_steps(checkpoint_every: int | None) -> None:
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every: expected at least 1, got {checkpoint_every}")


def _warn(folder: RunFolder, message: str) -> None:
    if folder.writes:
        warnings.warn(message, ResumeWarning, stacklevel=3)


def _run(trainer: Trainer, folder: RunFolder, settings: Settings, saved: int | None, quiet: bool) -> Summary:
    """Trains to the end. ``saved`` is the step of the checkpoint that is there already."""
    recipe, every = trainer.recipe, settings.checkpoint_every
    progress = Progress(trainer, quiet)
    log: TensorBoardLog | None = None

    def save() -> None:
        nonlocal saved
        trainer.require_finite_state()
        folder.save_checkpoint(trainer.state_dict(), settings)
        saved = trainer.steps

    def history() -> list[dict[str, Any]]:
        return [asdict(metrics) for metrics in trainer.history]

    def on_step(tokens: int, loss: float) -> None:
        progress.step(tokens, loss)
        if log:
            log.step(trainer.steps, loss, float(trainer.schedule.get_last_lr()[0]))
        if every and trainer.steps % every == 0:
            save()

    try:
        if saved is None:
            save()
        folder.write_metrics(history())  # a run that was killed may have left them an epoch behind
        if settings.tensorboard and folder.writes:
            log = TensorBoardLog(folder.path, trainer.steps + 1)
        for metrics in trainer.epochs(on_step):
            progress.epoch(getattr(metrics, recipe.metric))
            save()
            folder.write_metrics(history())
            if log:
                log.epoch(trainer.steps, history()[-1])
        summary = summarize(trainer.history, recipe, settings)
        folder.plot(history(), recipe.metric, recipe.target)
        folder.write_summary(asdict(summary))
    except RunFolderError as error:
        if saved is None:
            raise
        raise RunFolderError(f"{error}; `fusedrnn train --resume {folder.path}` goes on from step {saved}") from error
    except DivergedError as error:
        if saved is None:
            raise
        raise DivergedError(f"{error}; {folder.checkpoint} keeps the model of step {saved}") from error
    finally:
        progress.close()
        if log:
            log.close()
    return summary
