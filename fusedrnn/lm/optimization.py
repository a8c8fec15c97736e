"""The optimizer that a recipe describes, and its schedules of learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler, OneCycleLR

from .recipe import Recipe


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with the recipe's numbers."""
    return torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.momentum[0], recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


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


def stepwise(optimizer: torch.optim.Optimizer, recipe: Recipe, start: Callable[[int], int]) -> LambdaLR:
    """The schedule of constant rates that :class:`Recipe` describes; start is that of :func:`make_schedule`."""

    def factor(step: int) -> float:
        rates = [recipe.learning_rate, *(rate for epoch, rate in recipe.rates if step >= start(epoch))]
        return rates[-1] / recipe.learning_rate

    return LambdaLR(optimizer, factor)


def warm_restarts(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch_steps: int) -> CosineAnnealingWarmRestarts:
    """The schedule of cosines that :class:`Recipe` describes, given the optimizer steps of an epoch."""
    return CosineAnnealingWarmRestarts(optimizer, recipe.cycle * epoch_steps, recipe.cycle_factor)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, start: Callable[[int], int]) -> LRScheduler:
    """The recipe's schedule, which is told of every optimizer step.

    Args:
        start: how many optimizer steps all epochs before the n-th take, counted from 0. It may be another function
            later, for a schedule that loads the state of one that was made with it.
    """
    if recipe.schedule == "stepwise":
        return stepwise(optimizer, recipe, start)
    if recipe.schedule == "warm-restarts":
        return warm_restarts(optimizer, recipe, start(1))
    return one_cycle(optimizer, recipe, start(recipe.epochs))


@contextmanager
def scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Multiplies the learning rates inside; afterwards they are what they were."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
