"""What an epoch of training reads at each step: the batches of the corpus, or windows of random lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from .data import Batch
from .recipe import Recipe

_LEAST = 5  # tokens of a window of random length, as in the source


class Windows:
    """The training part of a corpus, cut anew for every epoch where the recipe asks for random lengths.

    Merity et al. (2017), section 5: the length of each window is drawn from a normal distribution around
    ``sequence_length`` or, with the probability ``length_halved``, half of it; ``length_deviation`` is its standard
    deviation. It is at least 5, or ``sequence_length`` if that is less; the last window of an epoch ends with the text.
    Each row's windows follow one another, so that the state can be carried.

    Args:
        batches: of the corpus, contiguous where lengths are random.
        seed: of the lengths, from 0; of all windows of a run, whichever epoch they are asked for first.

    Attributes:
        length: T, tokens of a row in each of the batches.
    """

    def __init__(self, batches: Sequence[Batch], recipe: Recipe, seed: int = 0) -> None:
        self.batches = batches
        self.recipe = recipe
        self.seed = seed
        self.length = batches[0][0].shape[1]
        self._ends: list[list[int]] = []  # of each epoch, the ends of the windows

    def length_of_epoch(self, epoch: int) -> int:
        """Tokens of a row in a batch, or in a window on average, in an epoch that is counted from 0."""
        return min(self.length, self.recipe.length_of_epoch(epoch)) if self.recipe.curriculum else self.length

    def of_epoch(self, epoch: int) -> Sequence[Batch]:
        """What an epoch reads, step by step."""
        if self.recipe.random_lengths:
            return _Cut(self.batches, self.length, self._cut(epoch))
        length = self.length_of_epoch(epoch)
        return self.batches if length == self.length else _Shortened(self.batches, length)

    def start(self, epoch: int) -> int:
        """How many steps all epochs before this one take."""
        if self.recipe.random_lengths:
            return sum(len(self._cut(e)) for e in range(epoch))
        return epoch * len(self.batches)

    def tokens(self, epoch: int, position: int | None = None) -> int:
        """How many tokens of all rows an epoch reads, or its first steps up to a position."""
        rows = len(self.batches[0][0])
        if position is None or not self.recipe.random_lengths:
            return rows * self.length_of_epoch(epoch) * (len(self.batches) if position is None else position)
        return rows * [0, *self._cut(epoch)][position]

    def _cut(self, epoch: int) -> list[int]:
        while len(self._ends) <= epoch:
            self._ends.append(self._draw(len(self._ends)))
        return self._ends[epoch]

    def _draw(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        whole = len(self.batches) * self.length
        count = whole // min(_LEAST, self.length) + 1  # windows that are surely enough
        halved = torch.rand(count, generator=generator, dtype=torch.float64) < self.recipe.length_halved
        mean = torch.where(halved, self.length / 2, float(self.length))
        lengths = mean + self.recipe.length_deviation * torch.randn(count, generator=generator, dtype=torch.float64)
        ends = accumulate(lengths.clamp(min=min(_LEAST, self.length)).int().tolist())
        return [*(end for end in ends if end < whole), whole]


class _Shortened(Sequence[Batch]):
    """The first tokens of the rows of batches."""

    def __init__(self, batches: Sequence[Batch], length: int) -> None:
        self._batches, self._length = batches, length

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        inputs, targets = self._batches[index]
        return inputs[:, : self._length], targets[:, : self._length]


class _Cut(Sequence[Batch]):
    """Batches of T tokens a row that continue each other, cut at other places."""

    def __init__(self, batches: Sequence[Batch], length: int, ends: list[int]) -> None:
        self._batches, self._length, self._ends = batches, length, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        first, last = start // self._length, (end - 1) // self._length
        parts = zip(*(self._batches[i] for i in range(first, last + 1)), strict=True)
        inputs, targets = (torch.cat(part, 1).narrow(1, start - first * self._length, end - start) for part in parts)
        return inputs, targets
