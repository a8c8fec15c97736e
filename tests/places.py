"""Where the tests of tests/cuda run: on a GPU with each algorithm, and on the CPU, which proves the tests themselves.

Whoever has another way to run the operators appends a place to PLACES, before tests are collected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch

from fusedrnn.info import info

FORCE = "FUSEDRNN_ALGORITHM"
"""The environment variable that the operators read at each call on a GPU."""

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One way to run the operators."""

    name: str
    device: str
    algorithm: str | None = None  # forced; None: as the operators choose
    chooses: bool = False  # has algorithms to choose from
    operators: Callable[[], AbstractContextManager[Any]] = nullcontext  # what puts other operators in ours' place
    slow: bool = False  # a call takes a second: a part of the cases must do

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def torchs_own(self) -> bool:
        """Whether the operators are the ones that torch knows, for its compiler and its checks."""
        return self.operators is nullcontext

    def needs_torchs_own(self) -> None:
        if not self.torchs_own:
            pytest.skip("other operators stand in for those that torch knows")

    def some(self, cases: Sequence[T], turn: int = 0, of: int = 4) -> Sequence[T]:
        """All cases, or where calls are slow every fourth; ``turn`` says which of them."""
        return cases[turn % of :: of] or cases[:1] if self.slow else cases

    def refuses(self, error: Exception) -> bool:
        """Whether an error says that the algorithm that is forced cannot run what was asked."""
        return bool(self.algorithm) and bool(
            re.search(f"the algorithm {self.algorithm} (does not|cannot|needs)", str(error))
        )

    def check_each(self, cases: Sequence[T], check: Callable[[T], None]) -> None:
        """Checks every case that the place can run; skips the test where that is none."""
        refusals = []
        for case in cases:
            try:
                check(case)
            except RuntimeError as error:
                if not self.refuses(error):
                    raise
                refusals.append(str(error))
        if cases and len(refusals) == len(cases):
            pytest.skip(refusals[0])

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = os.environ.pop(FORCE, None)
        if self.algorithm:
            os.environ[FORCE] = self.algorithm
        try:
            with self.operators():
                yield
        finally:
            os.environ.pop(FORCE, None)
            if before is not None:
                os.environ[FORCE] = before


PLACES = [
    Place("cpu", "cpu"),
    Place("cuda", "cuda", chooses=True),
    *(Place(f"cuda-{name}", "cuda", name, chooses=True) for name in ("step", "block", "grid")),
]


def why_no_gpu() -> str | None:
    """Why tests marked `cuda` cannot run here, or None where they can."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if info().cuda_kernels else f"this build has no CUDA kernels: {info().no_cuda_reason}"
