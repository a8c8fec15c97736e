"""Forecasts a series half a day ahead, and compares with what needs no training.

python examples/forecast.py

The series is made here: two years of hours with a daily rhythm, quiet weekends, slow weather and noise. The first 18
months train. A GRU reads hour by hour and says at each what comes 12 hours later.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn

HOURS, TRAIN, AHEAD, DAY, WEEK = 17_520, 13_140, 12, 24, 168


def series(generator: torch.Generator) -> Tensor:
    """Values of every hour, ``[HOURS]``, of mean 0 and deviation 1."""
    hour = torch.arange(HOURS)
    working = (hour % WEEK < 5 * DAY).float()
    rhythm = (1 + 2 * working) * torch.sin(2 * math.pi * (hour % DAY - 6) / DAY)
    weather, noise = torch.zeros(HOURS), torch.randn(HOURS, generator=generator)
    for t in range(1, HOURS):
        weather[t] = 0.98 * weather[t - 1] + 0.1 * noise[t]
    values = rhythm + working + weather + 0.2 * torch.randn(HOURS, generator=generator)
    return (values - values.mean()) / values.std()


class Forecaster(nn.Module):
    """Reads ``[T, B, 1]`` and says, after each step, what comes AHEAD steps later, ``[T, B]``."""

    def __init__(self, hidden_size: int = 48) -> None:
        super().__init__()
        self.rnn = fusedrnn.GRU(1, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(y).squeeze(-1)


def train(model: Forecaster, values: Tensor, steps: int, generator: torch.Generator, rows: int = 32) -> None:
    """Each step reads three weeks from each of some random places; the first week only warms the state up."""
    T = 3 * WEEK
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(len(values) - T - AHEAD, (rows,), generator=generator)
        places = starts + torch.arange(T)[:, None]
        forecast = model(values[places][..., None])
        loss = F.mse_loss(forecast[WEEK:], values[places + AHEAD][WEEK:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: squared error {loss.item():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecast a series with a GRU.")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    values, model = series(generator), Forecaster()
    train(model, values[:TRAIN], options.steps, generator)

    with torch.no_grad():
        forecast = model(values[:-AHEAD, None, None])[TRAIN:, 0]
    after = values[TRAIN + AHEAD :]
    weekly = values[TRAIN + AHEAD - WEEK : -WEEK]
    yesterday = values[TRAIN + AHEAD - DAY : -DAY]
    print("root of the mean squared error over the last six months, 12 hours ahead:")
    for name, guess in (("GRU", forecast), ("same hour last week", weekly), ("same hour yesterday", yesterday)):
        print(f"  {name}: {(guess - after).square().mean().sqrt():.3f}")


if __name__ == "__main__":
    main()
