"""Text files: reading, cutting into characters or words, and writing those down again."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from .errors import DataError

Level = Literal["char", "word"]
"""What a token is. Words are what stands between blanks, and a line's end is a word of its own."""

UNKNOWN = "<unk>"
"""The token that stands for all rare ones."""

_FOLDER = "FUSEDRNN_DATA"
FEW_LINES = 10


def find_text(name: str, url: str = "") -> Path:
    """Looks for a text file under its path, and then in the folder that the variable FUSEDRNN_DATA names.

    Args:
        url: where it can be downloaded, for the message.

    Raises:
        DataError: it is in neither place.
    """
    places = [Path(name), *(Path(folder) / name for folder in [os.environ.get(_FOLDER, "")] if folder)]
    for path in places:
        if path.is_file():
            return path
    advice = f"download {url}, and" if url else "then"
    raise DataError(
        f"there is no file {' or '.join(map(str, places))}: {advice} give its path (--data), or the folder that holds "
        f"it (the variable {_FOLDER})"
    )


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Reads a text file; every line ends in a line feed, and a byte order mark is left out.

    Raises:
        DataError: it is empty, there is no such encoding, or a byte does not fit it, which is named with its offset.
        OSError: it cannot be read.
    """
    return "".join(read_pieces(path, encoding))


def read_pieces(path: Path, encoding: str = "utf-8", size: int = 1 << 20) -> Iterator[str]:
    """Reads a text file as :func:`read_text` does, in pieces of about ``size`` bytes."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        "".encode(encoding)  # refuses what turns bytes into bytes
    except (LookupError, ValueError) as error:
        raise DataError(f"encoding: there is no text encoding {encoding!r}; try utf-8 or latin-1") from error
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset, first = 0, True
    with path.open("rb") as file:
        while True:
            content = file.read(size)
            try:
                piece = lines.decode(content, final=not content)
            except UnicodeDecodeError as error:
                # What was left over from the last piece comes first in what could not be decoded.
                place = offset + len(content) - len(error.object) + error.start
                raise DataError(
                    f"{path} is not {encoding}: byte 0x{error.object[error.start]:02x} at offset {place} does not fit; "
                    "name the encoding it has (--encoding; latin-1 accepts every byte)"
                ) from error
            offset += len(content)
            if first:
                piece = piece.removeprefix("\ufeff")
            if piece:
                first = False
                yield piece
            if not content:
                break
    if first:
        raise DataError(f"{path} is empty")


def split_tokens(text: str, level: Level) -> list[str]:
    """Cuts a text into its characters, or into its words and line ends."""
    return list(text) if level == "char" else re.findall(r"\n|[^\s]+", text)


def join_tokens(tokens: Iterable[str], level: Level) -> Iterator[str]:
    """The text of each token with what stands before it: between two words of one line, a blank."""
    before = "\n"
    for token in tokens:
        blank = level == "word" and "\n" not in (before, token)
        yield f" {token}" if blank else token
        before = token


def split_lines(text: str, fraction: float) -> tuple[str, str | None]:
    """Splits off the first ``fraction`` of a text's lines.

    Returns:
        both parts; for a text of fewer than ten lines, which would be too coarse a measure, the whole and None.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if len(lines) < FEW_LINES:
        return text, None
    cut = int(len(lines) * fraction)
    return "".join(lines[:cut]), "".join(lines[cut:])


def replace_rare(tokens: Sequence[str], min_freq: int) -> list[str]:
    """Puts :data:`UNKNOWN` in the place of every token that occurs fewer than ``min_freq`` times."""
    counts = Counter(tokens)
    return [token if counts[token] >= min_freq else UNKNOWN for token in tokens]
