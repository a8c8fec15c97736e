"""Training with a carried hidden state: truncated back-propagation through time, batch after batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

import fusedrnn

from .data import Corpus
from .errors import DivergedError
from .model import Backend, LanguageModel, Output, evaluating
from .recipes import Recipe
from .regularization import activation_regularization, temporal_activation_regularization
from .run_folder import RunFolder


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.jsonl."""

    epoch: int  # from 1
    train_loss: float  # mean cross-entropy in nats, dropout on, penalties left out
    valid_loss: float  # the same over the validation part, dropout off
    accuracy: float  # of the most likely token, over the validation part
    seconds: float  # training and validation
    tokens_per_second: float  # of training alone


@dataclass(frozen=True)
class Summary:
    """summary.json: what a run reached, and what it takes to repeat it."""

    recipe: str
    metric: str
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


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch_steps: int) -> LRScheduler:
    """The recipe's schedule, which is told of every optimizer step."""
    if recipe.schedule == "stepwise":
        return stepwise(optimizer, recipe, epoch_steps)
    return one_cycle(optimizer, recipe, recipe.epochs * epoch_steps)


class Trainer:
    """Trains a model on a corpus, as a recipe says.

    Args:
        model: of any dtype.
        corpus: batches, contiguous where the recipe is stateful (see :func:`~fusedrnn.lm.data.make_corpus`), on the
            model's device.
        recipe: optimizer, schedule and penalties are taken from it.
    """

    def __init__(self, model: LanguageModel, corpus: Corpus, recipe: Recipe) -> None:
        self.model = model
        self.corpus = corpus
        self.recipe = recipe
        self.steps = 0
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
            inputs: int64 ``[B, T]``.
            targets: int64 ``[B, K]``, the tokens that follow the last K inputs, K from 1 to T.

        Returns:
            the cross-entropy, in nats per target.

        Raises:
            DivergedError: the loss is not finite. The parameters are those of before the call.
        """
        output = self._read(inputs)
        logits = output.logits[:, -targets.shape[1] :]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        objective = (
            loss
            + activation_regularization(output.dropped, self.recipe.ar)
            + temporal_activation_regularization(output.raw, self.recipe.tar)
        )
        _require_finite(objective.item(), f"training loss at step {self.steps + 1}")
        self.optimizer.zero_grad()
        objective.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.model.detach()
        self.steps += 1
        return loss.item()

    def _read(self, inputs: Tensor) -> Output:
        if not self.recipe.stateful:
            self.model.reset()
        return self.model(inputs)

    def train_epoch(self, on_step: Callable[[int, float], None] | None = None) -> float:
        """Reads the training part once, from a zero state.

        Args:
            on_step: called after each batch with its number of tokens and its loss.

        Returns:
            the mean of the batches' losses.

        Raises:
            DivergedError: see :meth:`step`.
        """
        self.model.train()
        self.model.reset()
        total = 0.0
        for inputs, targets in self.corpus.train:
            loss = self.step(inputs, targets)
            total += loss
            if on_step:
                on_step(inputs.numel(), loss)
        return total / len(self.corpus.train)

    def validate(self) -> tuple[float, float]:
        """Reads the validation part once, from a zero state.

        Returns:
            the mean cross-entropy in nats per target, and the fraction of targets that were the most likely tokens.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss, hits, tokens = 0.0, 0, 0
        self.model.reset()
        with evaluating(self.model):
            for inputs, targets in self.corpus.valid:
                logits = self._read(inputs).logits[:, -targets.shape[1] :].flatten(0, 1)
                loss += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                hits += int((logits.argmax(-1) == targets.flatten()).sum())
                tokens += targets.numel()
        self.model.reset()
        _require_finite(loss, f"validation loss after step {self.steps}")
        return loss / tokens, hits / tokens

    def epochs(self, on_step: Callable[[int, float], None] | None = None) -> Iterator[EpochMetrics]:
        """Trains and validates, epoch by epoch.

        Raises:
            DivergedError: see :meth:`step`.
        """
        tokens = sum(inputs.numel() for inputs, _ in self.corpus.train)
        for epoch in range(1, self.recipe.epochs + 1):
            start = time.perf_counter()
            train_loss = self.train_epoch(on_step)
            trained = time.perf_counter()
            valid_loss, accuracy = self.validate()
            seconds = time.perf_counter() - start
            yield EpochMetrics(epoch, train_loss, valid_loss, accuracy, seconds, tokens / (trained - start))


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the {name} is {loss}: train with a lower learning rate, or clip the gradient")


class _Progress:
    """A progress bar in tokens, with their number per second; silent where nobody watches."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        from tqdm import tqdm  # here, so that the package is of use without the extra [lm]

        tokens = sum(inputs.numel() for inputs, _ in trainer.corpus.train) * trainer.recipe.epochs
        # None: tqdm looks whether its output is a terminal.
        self._bar = tqdm(
            desc=trainer.recipe.name, total=tokens, unit="token", unit_scale=True, disable=True if quiet else None
        )
        self._metric = trainer.recipe.metric
        self._value = "-"

    def step(self, tokens: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}, {self._metric} {self._value}", refresh=False)
        self._bar.update(tokens)

    def epoch(self, value: float) -> None:
        self._value = f"{value:.4f}"

    def close(self) -> None:
        self._bar.close()


def train(
    recipe: Recipe, out: str | Path, *, backend: Backend = "fused", seed: int = 0, quiet: bool = False
) -> Summary:
    """Runs a recipe and writes its run folder.

    The folder holds metrics.jsonl (a line per epoch, :class:`EpochMetrics`), checkpoint.pt (the last epoch's),
    curves.png and, when all is done, summary.json (:class:`Summary`). The same seed, backend, thread count and machine
    give the same figures. Sets the seed of torch's global generator.

    Args:
        out: a folder that does not exist yet, or is empty.
        quiet: draw no progress bar, not even on a terminal.

    Raises:
        RunFolderError: ``out`` holds something already.
        DivergedError: the loss is no longer finite. The folder keeps what the epochs before have written.
        DataError: the data cannot be found or read, or fill no batch.
        RecipeError: the recipe's model or the backend is not valid.
        OSError: something could not be read or written.
    """
    torch.manual_seed(seed)
    corpus = recipe.make_corpus()
    model = recipe.make_model(len(corpus.vocabulary), backend)
    trainer = Trainer(model, corpus, recipe)
    folder = RunFolder.create(out)
    history: list[EpochMetrics] = []
    progress = _Progress(trainer, quiet)
    try:
        for metrics in trainer.epochs(progress.step):
            history.append(metrics)
            progress.epoch(getattr(metrics, recipe.metric))
            folder.append_metrics(asdict(metrics))
            folder.save_checkpoint(model, corpus.vocabulary, recipe, backend)
    finally:
        progress.close()
    summary = _summarize(history, recipe, backend, seed)
    folder.plot([asdict(metrics) for metrics in history], recipe.metric, recipe.target)
    folder.write_summary(asdict(summary))
    return summary


def _summarize(history: list[EpochMetrics], recipe: Recipe, backend: Backend, seed: int) -> Summary:
    return Summary(
        recipe=recipe.name,
        metric=recipe.metric,
        value=getattr(history[-1], recipe.metric),
        target=recipe.target,
        seconds=sum(metrics.seconds for metrics in history),
        # Every epoch reads as many tokens, so that the total rate is the harmonic mean.
        tokens_per_second=len(history) / sum(1 / metrics.tokens_per_second for metrics in history),
        backend=backend,
        seed=seed,
        epochs=len(history),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        fusedrnn=fusedrnn.__version__,
    )
