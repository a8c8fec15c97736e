"""Times of functions that take turns, and whether they allow a conclusion.

What else the machine does falls on both sides of a comparison when they alternate, and a median forgets the few runs
that it hit hard. What is left is told by two figures: the spread of the runs, and an A/A test, which treats every other
run of nn.* as if it were a rival and asks how far the two differ.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Function = Callable[[], object]
Clock = Callable[[], float]
Timer = Callable[[Function], float]
"""Milliseconds that a function takes."""

SPREAD_LIMIT = 0.10
REPEAT_LIMIT = 0.05
_LONG = 0.2  # seconds: a function that takes as long is warm after one call
_MOST = 2000  # rounds


@dataclass(frozen=True)
class Comparison:
    """Medians of runs of nn.* and of fusedrnn that took turns."""

    nn_ms: float
    fused_ms: float
    spread: float  # half the interquartile range over the median, of the side that has most
    repeat: float  # A/A: relative difference between the medians of nn.*'s even and odd runs
    rounds: int  # runs of each side

    @property
    def ratio(self) -> float:
        """How many times faster fusedrnn is."""
        return self.nn_ms / self.fused_ms

    @property
    def noise(self) -> str | None:
        """Why the ratio allows no conclusion, or None where it does."""
        if self.spread > SPREAD_LIMIT:
            return f"runs spread by {self.spread:.0%}, more than {SPREAD_LIMIT:.0%}"
        if self.repeat > REPEAT_LIMIT:
            return f"nn.* against itself differs by {self.repeat:.0%}, more than {REPEAT_LIMIT:.0%}"
        return None


def alternate(
    functions: Sequence[Function], seconds: float, least: int = 8, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Times of each function in ms: once warm, they are called in turn for some seconds, at least ``least`` times."""

    def timer(f: Function) -> float:
        start = clock()
        f()
        return (clock() - start) * 1e3

    for f in functions:
        if timer(f) < _LONG * 1e3:
            f()
    return take_turns(functions, timer, seconds, least, _MOST, clock)


def take_turns(
    functions: Sequence[Function], timer: Timer, seconds: float, least: int, most: int, clock: Clock
) -> list[list[float]]:
    """Times of each function, which are called in turn for some seconds, from ``least`` to ``most`` times."""
    times: list[list[float]] = [[] for _ in functions]
    end = clock() + seconds
    while len(times[0]) < least or (clock() < end and len(times[0]) < most):
        for f, t in zip(functions, times, strict=True):
            t.append(timer(f))
    return times


def spread(times: Sequence[float]) -> float:
    """Half the interquartile range over the median."""
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / statistics.median(times)


def repeat(times: Sequence[float]) -> float:
    """Relative difference between the medians of the even and of the odd runs."""
    even, odd = statistics.median(times[::2]), statistics.median(times[1::2])
    return abs(even - odd) / min(even, odd)


def compare(
    nn: Function, fused: Function, seconds: float, least: int = 8, calls: int = 1, clock: Clock = time.perf_counter
) -> Comparison:
    """Times both sides for some seconds.

    Args:
        calls: how many calls of either function's subject one run of it makes; the times are those of one.
    """
    nn_times, fused_times = alternate([nn, fused], seconds, least, clock)
    return comparison(nn_times, fused_times, calls)


def comparison(
    nn_times: Sequence[float], fused_times: Sequence[float], calls: int = 1, others: Sequence[Sequence[float]] = ()
) -> Comparison:
    """What the times of both sides say, as noisy as the worst of them and of others that took turns with them."""
    return Comparison(
        nn_ms=statistics.median(nn_times) / calls,
        fused_ms=statistics.median(fused_times) / calls,
        spread=max(map(spread, (nn_times, fused_times, *others))),
        repeat=repeat(nn_times),
        rounds=len(nn_times),
    )


def fma_peak(runs: int = 20, rounds: int = 3_000_000) -> float:
    """GFLOP/s of multiply-adds that stay in registers, on torch's threads: the best of several runs of some 10 ms."""

    def run() -> float:
        start = time.perf_counter()
        flops = torch.ops.fusedrnn.multiply_add(rounds)
        return flops / (time.perf_counter() - start) / 1e9

    return max(run() for _ in range(runs))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Runs torch, and with it the kernels, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
