"""Training with a carried hidden state: truncated back-propagation through time, batch after batch."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler, OneCycleLR

from .data import Batch, Corpus
from .distributed import ALONE, Processes, is_first_process, join_processes, local_device
from .errors import DivergedError, ResumeWarning, RunFolderError, StateError
from .model import Backend, Output, StatefulModel, evaluating
from .recipe import Goal, Metric, Recipe
from .regularization import activation_regularization, temporal_activation_regularization
from .run_folder import RunFolder, Settings
from .tensorboard_log import TensorBoardLog, require_tensorboard
from .token_file import open_corpus

_PROSE = ("source", "measured", "target")  # fields of a recipe that training does not read
_STATE = (
    *("recipe", "vocabulary", "text", "model", "optimizer", "schedule", "hidden", "generators"),
    *("steps", "position", "loss_sum", "seconds", "history"),
)


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.jsonl."""

    epoch: int  # from 1
    train_loss: float  # mean cross-entropy in nats, dropout on, penalties left out
    valid_loss: float  # the same over the validation part, dropout off
    accuracy: float  # of the most likely token, over the validation part
    seconds: float  # training and validation, also before the run was resumed; steps done again count once
    tokens_per_second: float  # of training alone


@dataclass(frozen=True)
class Summary(Goal):
    """summary.json: what a run reached, and what it takes to repeat it."""

    recipe: str
    metric: Metric
    value: float  # in the last epoch
    target: float | None
    seconds: float  # of all epochs
    tokens_per_second: float  # of training alone
    backend: str
    seed: int
    epochs: int
    threads: int
    torch: str
    fusedrnn: str


def one_cycle(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> OneCycleLR:
    """The schedule that :class:`Recipe` describes, over a number of optimizer steps."""
    ends, peak = recipe.momentum
    return OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps,
        pct_start=recipe.pct_start,
        div_factor=recipe.div,
        final_div_factor=recipe.final_div / recipe.div,  # torch counts it from the first learning rate
        max_momentum=ends,
        base_momentum=peak,
    )


def stepwise(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch_steps: int) -> LambdaLR:
    """The schedule of constant rates that :class:`Recipe` describes, given the optimizer steps of an epoch."""

    def factor(step: int) -> float:
        rates = [recipe.learning_rate, *(rate for epoch, rate in recipe.rates if step >= epoch * epoch_steps)]
        return rates[-1] / recipe.learning_rate

    return LambdaLR(optimizer, factor)


def warm_restarts(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch_steps: int) -> CosineAnnealingWarmRestarts:
    """The schedule of cosines that :class:`Recipe` describes, given the optimizer steps of an epoch."""
    return CosineAnnealingWarmRestarts(optimizer, recipe.cycle * epoch_steps, recipe.cycle_factor)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch_steps: int) -> LRScheduler:
    """The recipe's schedule, which is told of every optimizer step."""
    if recipe.schedule == "stepwise":
        return stepwise(optimizer, recipe, epoch_steps)
    if recipe.schedule == "warm-restarts":
        return warm_restarts(optimizer, recipe, epoch_steps)
    return one_cycle(optimizer, recipe, recipe.epochs * epoch_steps)


class Trainer:
    """Trains a model on a corpus, as a recipe says.

    Args:
        model: of any dtype.
        corpus: batches, contiguous where the recipe is stateful (see :func:`~fusedrnn.lm.data.make_corpus`).
        recipe: optimizer, schedule and penalties are taken from it.
        processes: those that train this model together, each with a trainer of its own on the same corpus.

    Attributes:
        steps: how often the optimizer has stepped.
        position: batches of the training part that the current epoch has read.
        history: of the epochs that are over, by :meth:`epochs`.

    Raises:
        RecipeError: the rows of a batch cannot be split among the processes.
    """

    def __init__(self, model: StatefulModel, corpus: Corpus, recipe: Recipe, processes: Processes = ALONE) -> None:
        processes.require_rows(len(corpus.train[0][0]))
        self.model = model
        self.corpus = corpus
        self.recipe = recipe
        self.processes = processes
        self._averaging = processes.wrap(model)
        self.steps = 0
        self.position = 0
        self.history: list[EpochMetrics] = []
        self._loss_sum = 0.0  # of the batches that the current epoch has read
        self._seconds = 0.0  # that their training took
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.momentum[0], recipe.beta2),
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.schedule = make_schedule(self.optimizer, recipe, len(corpus.train))

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Trains on one batch, which continues the last one where the recipe is stateful.

        Args:
            inputs: int64 ``[B, T]``, of several processes the rows of this one.
            targets: int64 ``[B, K]``, the tokens that follow the last K inputs, K from 1 to T.

        Returns:
            the cross-entropy, in nats per target of all processes.

        Raises:
            DivergedError: the loss is not finite. The parameters are those of before the call.
        """
        output = self._read(inputs, **({"targets": targets} if self.recipe.teacher_forcing else {}))
        logits = output.logits[:, -targets.shape[1] :]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        objective = (
            loss
            + activation_regularization(output.dropped, self.recipe.ar)
            + temporal_activation_regularization(output.raw, self.recipe.tar)
        )
        # Of all processes, so that they agree on whether to go on.
        mean, mean_objective = self.processes.mean(loss.item(), objective.item())
        _require_finite(mean_objective, f"training loss at step {self.steps + 1}")
        self.optimizer.zero_grad()
        objective.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.model.detach()
        self.steps += 1
        return mean

    def _read(self, inputs: Tensor, **options: Tensor) -> Output:
        if not self.recipe.stateful:
            self.model.reset()
        return self._averaging(inputs, **options) if self.model.training else self.model(inputs)

    def train_epoch(self, on_step: Callable[[int, float], None] | None = None) -> float:
        """Reads the training part once, from a zero state; or its rest, where an epoch was begun before.

        Args:
            on_step: called after each batch with its number of tokens and its loss; may call :meth:`state_dict`.

        Returns:
            the mean of the losses of all batches.

        Raises:
            DivergedError: see :meth:`step`.
        """
        self.model.train()
        if self.position == 0:
            self.model.reset()
            self._loss_sum = self._seconds = 0.0
        batches = self.corpus.train
        while self.position < len(batches):
            start = time.perf_counter()
            batch = self._shortened(batches[self.position])
            loss = self.step(*self.processes.part(batch, self._device))
            self.position += 1
            self._loss_sum += loss
            self._seconds += time.perf_counter() - start
            if on_step:
                on_step(batch[0].numel(), loss)
        self.position = 0
        return self._loss_sum / len(batches)

    def _shortened(self, batch: Batch) -> Batch:
        """What the curriculum lets this epoch read of a batch."""
        if not self.recipe.curriculum:
            return batch
        inputs, targets = batch
        length = self.recipe.length_of_epoch(len(self.history))
        return inputs[:, :length], targets[:, :length]

    def validate(self) -> tuple[float, float]:
        """Reads the validation part once, from a zero state.

        Returns:
            the mean cross-entropy in nats per target, and the fraction of targets that were the most likely tokens.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss, hits, tokens = 0.0, 0.0, 0.0
        self.model.reset()
        with evaluating(self.model):
            for batch in self.corpus.valid:
                inputs, targets = self.processes.part(batch, self._device)
                if not len(inputs):
                    continue  # a last batch of fewer rows than processes
                logits = self._read(inputs).logits[:, -targets.shape[1] :].flatten(0, 1)
                loss += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                hits += (logits.argmax(-1) == targets.flatten()).sum().item()
                tokens += targets.numel()
        self.model.reset()
        loss, hits, tokens = self.processes.sum(loss, hits, tokens)
        _require_finite(loss, f"validation loss after step {self.steps}")
        return loss / tokens, hits / tokens

    def epochs(self, on_step: Callable[[int, float], None] | None = None) -> Iterator[EpochMetrics]:
        """Trains and validates, epoch by epoch, from where the trainer is to the recipe's last epoch.

        Raises:
            DivergedError: see :meth:`step`.
        """
        while len(self.history) < self.recipe.epochs:
            tokens = len(self.corpus.train) * self._shortened(self.corpus.train[0])[0].numel()
            train_loss = self.train_epoch(on_step)
            start = time.perf_counter()
            valid_loss, accuracy = self.validate()
            seconds = self._seconds + time.perf_counter() - start
            epoch = len(self.history) + 1
            self.history.append(EpochMetrics(epoch, train_loss, valid_loss, accuracy, seconds, tokens / self._seconds))
            yield self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the training goes on, in plain values and tensors, which are not copied.

        Between two steps or epochs, that is in ``on_step`` or in the body of a loop over :meth:`epochs`, it is
        complete: a trainer that loads it ends with the same bits as this one. Of several processes all must call this,
        and get what belongs to all. Its keys:

        - ``recipe``: a dict of its fields; ``vocabulary``: the tokens; ``text``: :meth:`Corpus.digest`. They are
          there to be compared.
        - ``model``, ``optimizer``, ``schedule``: their own state_dicts.
        - ``hidden``: the model's carried state, a list of tensors, or None.
        - ``generators``: states of torch's global generators, by device: the CPU's, and that of the model's device;
          those of a process but the first are marked with its number.
        - ``steps``, ``position``: as the attributes of these names.
        - ``loss_sum``, ``seconds``: of the batches that the current epoch has read.
        - ``history``: for each epoch that is over, a dict of :class:`EpochMetrics`.
        """
        return {
            "recipe": asdict(self.recipe),
            "vocabulary": list(self.corpus.vocabulary.tokens),
            "text": self._text,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "hidden": self.processes.join_rows(self.model.state),
            "generators": self.processes.join({str(g.device): g.get_state() for g in self._generators()}),
            "steps": self.steps,
            "position": self.position,
            "loss_sum": self._loss_sum,
            "seconds": self._seconds,
            "history": [asdict(metrics) for metrics in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where another trainer was; what is loaded is copied.

        The backend and the number of processes may be others: they compute the same, but for the last bits and the
        random numbers of dropout. A device whose generator the state lacks keeps the generator that it has.

        Raises:
            StateError: the state is none, or of another recipe, text or model. The trainer stays as it was.
        """
        self._require_match(state)
        try:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except ValueError as error:
            raise StateError(f"the state is of another optimizer: {error}") from error
        self.schedule.load_state_dict(copy.deepcopy(state["schedule"]))
        self.model.load_state_dict(state["model"])
        self.model.state = self.processes.split_rows(state["hidden"], self._device)
        for generator in self._generators():
            found = self.processes.find(state["generators"], str(generator.device))
            if found is not None:
                generator.set_state(found)
        self.steps, self.position = state["steps"], state["position"]
        self._loss_sum, self._seconds = state["loss_sum"], state["seconds"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    def _require_match(self, state: Mapping[str, Any]) -> None:
        if lacks := [key for key in _STATE if key not in state]:
            raise StateError(f"no state of a trainer: it lacks {', '.join(lacks)}")
        mine, given = asdict(self.recipe), state["recipe"]
        for field in sorted(mine.keys() | given.keys()):
            there, here = given.get(field), mine.get(field)
            if field not in _PROSE and there != here:
                raise StateError(f"the state is of another recipe: {field} is {there!r} there, {here!r} here")
        if tuple(state["vocabulary"]) != self.corpus.vocabulary.tokens:
            raise StateError(
                f"the state's vocabulary of {len(state['vocabulary'])} tokens is not that of the text here, of "
                f"{len(self.corpus.vocabulary)} tokens"
            )
        if state["text"] != self._text:
            raise StateError("the text here is not the one that the state was trained on, or is cut in another way")
        mine, given = _kinds(self.model.state_dict()), _kinds(state["model"])
        for name in sorted(mine.keys() | given.keys()):
            there, here = given.get(name, "missing"), mine.get(name, "missing")
            if there != here:
                raise StateError(f"the state is of another model: {name} is {there} there, {here} here")

    def require_finite_state(self) -> None:
        """Says whether the state is worth keeping: a loss shows only at the next step what the last one spoiled.

        Raises:
            DivergedError: a parameter, its statistics in the optimizer or the carried state is not finite.
        """
        tensors = [(f"hidden state {index}", h) for index, h in enumerate(self.model.state or ())]
        for name, parameter in self.model.named_parameters():
            tensors.append((name, parameter))
            statistics = self.optimizer.state.get(parameter, {})
            tensors += [(f"{key} of {name}", torch.as_tensor(value)) for key, value in statistics.items()]
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                raise DivergedError(f"{name} is no longer finite after step {self.steps}: {_REMEDY}")

    @cached_property
    def _text(self) -> str:
        return self.corpus.digest()

    def _generators(self) -> list[torch.Generator]:
        """Torch's global generators, of the CPU and of the model's device."""
        if self._device.type == "cpu":
            return [torch.default_generator]
        others = torch.get_device_module(self._device).default_generators
        return [torch.default_generator, others[self._device.index]]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()}


_REMEDY = "train with a lower learning rate, or clip the gradient"


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the {name} is {loss}: {_REMEDY}")


class _Progress:
    """A progress bar in tokens, with their number per second; silent where nobody watches."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        from tqdm import tqdm  # here, so that the package is of use without the extra [lm]

        recipe, batches = trainer.recipe, trainer.corpus.train
        done = len(trainer.history)
        # Of a batch, in each epoch.
        tokens = [len(batches[0][0]) * recipe.length_of_epoch(epoch) for epoch in range(recipe.epochs)]
        before = len(batches) * sum(tokens[:done]) + sum(tokens[done : done + 1]) * trainer.position
        # None: tqdm looks whether its output is a terminal.
        self._bar = tqdm(
            desc=recipe.name,
            total=len(batches) * sum(tokens),
            initial=before,
            unit="token",
            unit_scale=True,
            disable=True if quiet or not trainer.processes.first else None,
        )
        self._metric = trainer.recipe.metric
        self._value = "-"
        if trainer.history:
            self.epoch(getattr(trainer.history[-1], self._metric))

    def step(self, tokens: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}, {self._metric} {self._value}", refresh=False)
        self._bar.update(tokens)

    def epoch(self, value: float) -> None:
        self._value = f"{value:.4f}"

    def close(self) -> None:
        self._bar.close()


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
            return _summarize([EpochMetrics(**metrics) for metrics in history], recipe, then)
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
    progress = _Progress(trainer, quiet)
    log: TensorBoardLog | None = None

    def save() -> None:
        nonlocal saved
        trainer.require_finite_state()
        folder.save_checkpoint(trainer.state_dict(), settings)
        saved = trainer.steps

    def write_metrics() -> None:
        folder.write_metrics(asdict(metrics) for metrics in trainer.history)

    def on_step(tokens: int, loss: float) -> None:
        progress.step(tokens, loss)
        if log:
            log.step(trainer.steps, loss, float(trainer.schedule.get_last_lr()[0]))
        if every and trainer.steps % every == 0:
            save()

    try:
        if saved is None:
            save()
        write_metrics()  # a run that was killed may have left them an epoch behind
        if settings.tensorboard and folder.writes:
            log = TensorBoardLog(folder.path, trainer.steps + 1)
        for metrics in trainer.epochs(on_step):
            progress.epoch(getattr(metrics, recipe.metric))
            save()
            write_metrics()
            if log:
                log.epoch(trainer.steps, asdict(metrics))
        summary = _summarize(trainer.history, recipe, settings)
        folder.plot([asdict(metrics) for metrics in trainer.history], recipe.metric, recipe.target)
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


def _summarize(history: list[EpochMetrics], recipe: Recipe, settings: Settings) -> Summary:
    lengths = [recipe.length_of_epoch(epoch) for epoch in range(len(history))]  # as the tokens that each has read
    return Summary(
        recipe=recipe.name,
        metric=recipe.metric,
        value=getattr(history[-1], recipe.metric),
        target=recipe.target,
        seconds=sum(metrics.seconds for metrics in history),
        tokens_per_second=sum(lengths) / sum(n / m.tokens_per_second for n, m in zip(lengths, history, strict=True)),
        backend=settings.backend,
        seed=settings.seed,
        epochs=len(history),
        threads=settings.threads,
        torch=settings.torch,
        fusedrnn=settings.fusedrnn,
    )
