"""What is timed, in the order that tells most first when the time ends early."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

ALGORITHMS = ("step", "block", "grid")


class Shape(NamedTuple):
    """A layer with as many features as hidden units, I = H."""

    cell: str
    dtype: str  # of the tensors; tf32 is float32 whose products may use TF32
    B: int
    T: int
    H: int

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} B={self.B} T={self.T} H={self.H}"


def _by_distance(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All combinations, beginning with the first of each list; what differs from it in little comes before the rest."""
    places = itertools.product(*(range(len(c)) for c in choices))
    return [tuple(c[i] for c, i in zip(choices, p, strict=True)) for p in sorted(places, key=sum)]


def benchmark_shapes() -> list[Shape]:
    """The first is the one that cuDNN's times are published for: on an H100, 2.0 ms forward, 5.2 ms with backward."""
    combinations = _by_distance(
        ("lstm", "gru", "rnn_tanh"),
        ("float16", "bfloat16", "float32", "tf32"),
        (16, 64, 1, 128),
        (1024, 64),
        (768, 256, 512, 1024, 64),
    )
    return [Shape(*c) for c in combinations]


def algorithm_shapes() -> list[Shape]:
    """Around where one algorithm begins to beat another."""
    combinations = _by_distance(
        ("lstm", "gru", "rnn_tanh"),
        ("float16", "float32", "bfloat16"),
        (16, 64, 1, 128, 512),
        (256,),
        (128, 256, 64, 768, 512, 1024),
    )
    return [Shape(*c) for c in combinations]
