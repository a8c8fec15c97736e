"""Texts larger than memory: their tokens in a file that is mapped into memory and read as training comes along.

The batches are those of :meth:`Recipe.make_corpus <fusedrnn.lm.recipe.Recipe.make_corpus>`, token for token. The file
holds eight bytes that name it, the length of a JSON header in eight more, the header, and from a page's start on the
tokens, each in the fewest bytes that the vocabulary needs.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import SOURCES, Batch, Corpus, Vocabulary, cut_sequences
from .errors import DataError, RecipeError
from .recipe import Recipe
from .text import FEW_LINES, UNKNOWN, find_text, read_pieces, split_tokens

_MAGIC = b"fusedrnn"
_PAGE = 4096
_READS = 256  # of batches between two times that the pages are given back


def open_corpus(recipe: Recipe, path: str | Path) -> Corpus:
    """The corpus of a recipe that reads a text file, whose tokens stay in a file of their own.

    Builds that file, in one step, if it is not there, or is of a text or of settings that have changed since. Building
    reads the text twice, piece by piece, and holds its distinct tokens alone in memory.

    Raises:
        DataError: the text cannot be found or read, or fills no batch; or the path holds something else.
        RecipeError: the recipe reads no text file, or carries no state.
        OSError: a file cannot be read or written.
    """
    if recipe.data in SOURCES:
        raise RecipeError(f"the data {recipe.data} are no text file, and need no token file")
    if not recipe.stateful:
        raise RecipeError("stateful: a token file serves recipes that carry their state")
    path, text = Path(path), find_text(recipe.data, recipe.data_url)
    origin = _origin(recipe, text)
    header = _read_header(path) if path.exists() else None
    if header is None or header["origin"] != origin:
        _build(recipe, text, origin, path)
        header = _read_header(path)
    vocabulary, tokens = Vocabulary(header["vocabulary"]), _Mapped(path, header)
    parts = [tokens.indices]
    if header["train_tokens"] is not None:
        parts = list(tokens.indices.tensor_split([header["train_tokens"]]))
    cut = [cut_sequences(part, recipe.sequence_length) for part in parts]
    if len(cut) == 1:
        ((sequences, targets),) = cut
        at = int(len(sequences) * 0.8)
        cut = [(sequences[:at], targets[:at]), (sequences[at:], targets[at:])]
    train, valid = (_Batches(tokens, recipe, *part) for part in cut)
    return Corpus(vocabulary, train, valid)


def _origin(recipe: Recipe, text: Path) -> dict[str, Any]:
    """What the tokens depend on."""
    status = text.stat()
    return {
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "level": recipe.level,
        "encoding": recipe.encoding,
        "lower": recipe.lower,
        "min_freq": recipe.min_freq,
    }


class _Mapped:
    """The tokens of a file. Pages that were read go back to the system again and again, so that few are resident."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        array = np.frombuffer(self._map, header["dtype"], header["tokens"], header["start"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that nobody must write into it; nobody does
            self.indices = torch.from_numpy(array)
        self._reads = 0

    def read(self, view: Tensor) -> Tensor:
        self._reads += 1
        if self._reads % _READS == 0:
            self._map.madvise(mmap.MADV_DONTNEED)  # of a mapped file: the pages are read again when needed
        return view.to(torch.int64, memory_format=torch.contiguous_format)


class _Batches(Sequence[Batch]):
    """Sequences in the order of :func:`~fusedrnn.lm.data.group_chunks`, each batch read when it is asked for."""

    def __init__(self, tokens: _Mapped, recipe: Recipe, sequences: Tensor, targets: Tensor) -> None:
        rows = recipe.batch_size
        if len(sequences) < rows:
            raise DataError(
                f"the data are too short: {len(sequences)} sequences do not fill one batch of {rows}; take a smaller "
                f"batch_size ({rows}) or sequence_length ({recipe.sequence_length})"
            )
        if recipe.predict == "last":
            targets = targets[:, -1:]
        m = len(sequences) // rows
        self._tokens = tokens
        self._views = [part[: m * rows].unflatten(0, (rows, m)).transpose(0, 1) for part in (sequences, targets)]

    def __len__(self) -> int:
        return len(self._views[0])

    def __getitem__(self, index: Any) -> Any:
        inputs, targets = (self._tokens.read(view[index]) for view in self._views)
        return inputs, targets


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        start = file.read(16)
        if len(start) < 16 or start[:8] != _MAGIC:
            raise DataError(f"{path} is no token file: choose another path, or remove it first")
        try:
            header = json.loads(file.read(struct.unpack("<Q", start[8:])[0]))
            whole = header["start"] + header["tokens"] * np.dtype(header["dtype"]).itemsize
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: remove it, to have it built again") from error
    if path.stat().st_size != whole:
        raise DataError(f"{path} is damaged: remove it, to have it built again")
    return header


def _build(recipe: Recipe, text: Path, origin: dict[str, Any], path: Path) -> None:
    counts: Counter[str] = Counter()
    lines, end = 0, "\n"
    for piece in _pieces(recipe, text):
        counts.update(split_tokens(piece, recipe.level))
        lines, end = lines + piece.count("\n"), piece[-1]
    lines += end != "\n"
    names = {token: token if count >= recipe.min_freq else UNKNOWN for token, count in counts.items()}
    vocabulary = Vocabulary(names.values())
    ranks = {token: rank for rank, token in enumerate(vocabulary.tokens)}
    index = {token: ranks[name] for token, name in names.items()}
    size = len(vocabulary)
    dtype = np.dtype("u1" if size <= 2**8 else "i2" if size <= 2**15 else "i4")
    train_tokens = None if lines < FEW_LINES else _tokens_of_lines(recipe, text, int(lines * 0.8))
    header = {
        "origin": origin,
        "vocabulary": vocabulary.tokens,
        "dtype": dtype.newbyteorder("<").str,
        "tokens": counts.total(),
        "train_tokens": train_tokens,
    }
    encoded = json.dumps(header | {"start": 2**62}).encode()
    start = -(-(16 + len(encoded)) // _PAGE) * _PAGE
    encoded = json.dumps(header | {"start": start}).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write((_MAGIC + struct.pack("<Q", len(encoded)) + encoded).ljust(start, b"\0"))
            for piece in _pieces(recipe, text):
                tokens = split_tokens(piece, recipe.level)
                file.write(np.fromiter(map(index.__getitem__, tokens), dtype, len(tokens)).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _tokens_of_lines(recipe: Recipe, text: Path, lines: int) -> int:
    """How many tokens the first lines have."""
    tokens = 0
    for piece in _pieces(recipe, text):
        here = piece.count("\n")
        if here >= lines:
            at = -1
            for _ in range(lines):
                at = piece.index("\n", at + 1)
            return tokens + len(split_tokens(piece[: at + 1], recipe.level))
        tokens, lines = tokens + len(split_tokens(piece, recipe.level)), lines - here
    raise AssertionError("the text has lost lines")


def _pieces(recipe: Recipe, text: Path) -> Iterator[str]:
    """The text in pieces that end where a word does, lower-cased if the recipe says so."""
    anywhere = recipe.level == "char" and not recipe.lower
    rest: list[str] = []
    for piece in read_pieces(text, recipe.encoding):
        end = len(piece) if anywhere else max(piece.rfind("\n"), piece.rfind(" ")) + 1
        if end:
            whole = "".join([*rest, piece[:end]])
            rest = []
            yield whole.lower() if recipe.lower else whole
        if end < len(piece):
            rest.append(piece[end:])
    if rest:
        yield "".join(rest).lower() if recipe.lower else "".join(rest)
