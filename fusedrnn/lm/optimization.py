"""The optimizer that a recipe describes, and its schedules of learning rates."""

from __future__ import annotations

from collections.abc import Iterable

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
