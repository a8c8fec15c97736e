"""What a training reaches: after each epoch, and in the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .recipe import Goal, Metric, Recipe
from .run_folder import Settings


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


@dataclass(frozen=True)
class Spread:
    """What several seeds reached; seeds.json has these fields and the metric, target and backend of the runs."""

    values: tuple[float, ...]  # in the last epoch, by rising seed
    mean: float
    standard_deviation: float | None  # of a sample; None for one value
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(tuple(values), statistics.fmean(values), deviation, min(values), max(values))


def summarize(history: Sequence[EpochMetrics], recipe: Recipe, settings: Settings) -> Summary:
    """Sums up the epochs of a run."""
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
