"""Texts, vocabularies, and the batches through which a hidden state can be carried."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from .errors import UnknownTokenError

Batch = tuple[Tensor, Tensor]
"""Token indices ``[B, T]`` and the tokens that follow the last K of them, ``[B, K]``, each int64; K is T or 1."""

Predict = Literal["every", "last"]
"""After which tokens of a sequence the next one is predicted."""


class Vocabulary:
    """The distinct tokens of a text; a token's index is its rank by first appearance.

    Args:
        tokens: the text, or only its distinct tokens.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens: tuple[str, ...] = tuple(dict.fromkeys(tokens))
        self._index = {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Sequence[str]) -> Tensor:
        """Returns the indices of n tokens, int64 ``[n]``.

        Raises:
            UnknownTokenError: names the tokens that the vocabulary lacks.
        """
        unknown = [token for token in dict.fromkeys(tokens) if token not in self._index]
        if unknown:
            known = ", ".join(self.tokens[:5])
            raise UnknownTokenError(
                f"not among the {len(self)} tokens of the vocabulary ({known}, …): {', '.join(map(repr, unknown))}"
            )
        return torch.tensor([self._index[token] for token in tokens], dtype=torch.int64)

    def decode(self, indices: Iterable[int]) -> list[str]:
        """Returns the tokens at some indices."""
        return [self.tokens[index] for index in indices]


def human_numbers() -> list[str]:
    """The numbers 1 to 9,999 without 8,000, in English words, separated by full stops: 63,095 tokens, 30 distinct.

    This is the data set HUMAN_NUMBERS of Howard and Gugger, Deep Learning for Coders (2020), chapter 12, written anew:
    "one . two . three . … . nine thousand nine hundred ninety nine". 8,000 is missing there too.

    Raises:
        RuntimeError: the installed inflect spells numbers in another way, so that figures would not compare.
    """
    import inflect  # here, so that the package is of use without the extra [lm]

    engine = inflect.engine()
    lines = [
        str(engine.number_to_words(str(number), andword="", comma="")).replace("-", " ")
        for number in chain(range(1, 8000), range(8001, 10_000))
    ]
    tokens = " . ".join(lines).split()
    found, expected = (len(lines), len(tokens), len(set(tokens))), (9_998, 63_095, 30)
    if found != expected:
        raise RuntimeError(f"human numbers: lines, tokens and distinct tokens are {found}, expected {expected}")
    return tokens


def prefix_sums(rows: int, length: int, n: int = 3, generator: torch.Generator | None = None) -> Batch:
    """Random sequences of the numbers 0 to n - 1, and after each number the sum of all so far, modulo n.

    A task that no part of a sequence tells anything about, and whose state is one of n; at chance 1 / n of the answers
    are right.

    Args:
        generator: where the numbers come from; torch's global one if None.

    Returns:
        numbers and sums, each int64 ``[rows, length]``.
    """
    numbers = torch.randint(n, (rows, length), generator=generator)
    return numbers, numbers.cumsum(1) % n


def prefix_sum_corpus(rows: int, length: int, batches: int, valid_length: int, n: int = 3, *, seed: int = 0) -> Corpus:
    """Batches of :func:`prefix_sums`: some of ``[rows, length]`` train, one of ``[rows, valid_length]`` validates.

    Args:
        seed: of the numbers, which do not depend on torch's global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    train = [prefix_sums(rows, length, n, generator) for _ in range(batches)]
    return Corpus(Vocabulary(map(str, range(n))), train, [prefix_sums(rows, valid_length, n, generator)])


SOURCES: dict[str, Callable[[], list[str]]] = {"human-numbers": human_numbers}
"""The texts that a recipe can name, each as a list of tokens."""


def cut_sequences(indices: Tensor, length: int) -> Batch:
    """Cuts a text into sequences, and the same shifted by one token into targets.

    Args:
        indices: int64 ``[n]``.
        length: tokens of a sequence. The last tokens of the text, too few for one more sequence, are left out.

    Returns:
        sequences and targets, each ``[N, length]``: views of ``indices``.
    """
    count = max(0, len(range(0, len(indices) - length - 1, length)))
    used = count * length
    return indices[:used].view(count, length), indices[1 : used + 1].view(count, length)


def group_chunks(sequences: Tensor, batch_size: int) -> Tensor:
    """Orders sequences so that row j of batch i + 1 continues row j of batch i.

    With m = N // batch_size, batch i holds the sequences i, i + m, i + 2m, …: each row reads m sequences of its own one
    after the other, which is what makes carrying the hidden state from batch to batch valid. The last N % batch_size
    sequences are left out.

    Args:
        sequences: consecutive pieces of a text, ``[N, T]``.

    Returns:
        ``[m, batch_size, T]``.

    Raises:
        ValueError: there are fewer sequences than rows.
    """
    _require_batch(len(sequences), batch_size)
    m = len(sequences) // batch_size
    return sequences[: m * batch_size].unflatten(0, (batch_size, m)).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Corpus:
    """A text, cut into batches of one size; the last of ``valid`` may be smaller where no state is carried."""

    vocabulary: Vocabulary
    train: Sequence[Batch]
    valid: Sequence[Batch]

    def digest(self) -> str:
        """A checksum of every token of every batch: equal where a training can go on at the same place."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid):
            for batch in part:
                for tensor in batch:
                    digest.update(repr(tuple(tensor.shape)).encode())
                    digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def make_corpus(
    tokens: Sequence[str],
    sequence_length: int,
    batch_size: int,
    train_fraction: float = 0.8,
    *,
    train_tokens: int | None = None,
    stateful: bool = True,
    predict: Predict = "every",
) -> Corpus:
    """Cuts a text into sequences, of which the first ``train_fraction`` train and the others validate.

    Args:
        train_tokens: the text is split after so many tokens instead, and each part cut by itself.
        stateful: order the sequences as :func:`group_chunks` does, so that a state can be carried. Otherwise each
            batch holds sequences that follow one another; those that do not fill a last batch validate, but do not
            train.
        predict: the targets are the tokens that follow "every" token of a sequence, or its "last" one alone.

    Raises:
        ValueError: one of the two parts does not fill a batch.
    """
    vocabulary = Vocabulary(tokens)
    indices = vocabulary.encode(tokens)
    if train_tokens is None:
        sequences, targets = cut_sequences(indices, sequence_length)
        cut = int(len(sequences) * train_fraction)
        train, valid = (sequences[:cut], targets[:cut]), (sequences[cut:], targets[cut:])
    else:
        train, valid = (cut_sequences(part, sequence_length) for part in indices.tensor_split([train_tokens]))
    if predict == "last":
        train, valid = ((sequences, targets[:, -1:]) for sequences, targets in (train, valid))
    if not stateful:
        full = _consecutive(*train, batch_size)[: len(train[0]) // batch_size]
        return Corpus(vocabulary, full, _consecutive(*valid, batch_size))
    return Corpus(vocabulary, _contiguous(*train, batch_size), _contiguous(*valid, batch_size))


def _contiguous(sequences: Tensor, targets: Tensor, batch_size: int) -> list[Batch]:
    return list(zip(group_chunks(sequences, batch_size), group_chunks(targets, batch_size), strict=True))


def _consecutive(sequences: Tensor, targets: Tensor, batch_size: int) -> list[Batch]:
    """Batches in the order of the text; the last one may be smaller."""
    _require_batch(len(sequences), batch_size)
    return list(zip(sequences.split(batch_size), targets.split(batch_size), strict=True))


def _require_batch(sequences: int, batch_size: int) -> None:
    if sequences < batch_size:
        raise ValueError(f"{sequences} sequences do not fill one batch of {batch_size}")
