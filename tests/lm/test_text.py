from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fusedrnn.lm import RECIPES, TEXT, DataError, LanguageModelError, Recipe
from fusedrnn.lm.text import UNKNOWN, find_text, join_tokens, read_text, replace_rare, split_lines, split_tokens

LINES = [f"The {word} line, line {number}." for number, word in enumerate(["first", "next", "Last"] * 40)]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def recipe_for(path: Path, **changes: Any) -> Recipe:
    small: dict[str, Any] = {"sequence_length": 5, "batch_size": 3, "data": str(path)}
    return dataclasses.replace(TEXT, **(small | changes))


def read_back(recipe: Recipe) -> tuple[list[list[str]], list[list[str]]]:
    """The tokens of each row, over all batches, of both parts."""
    corpus = recipe.make_corpus()
    return tuple(  # type: ignore[return-value]
        [corpus.vocabulary.decode(row) for row in torch.cat([inputs for inputs, _ in part], 1).tolist()]
        for part in (corpus.train, corpus.valid)
    )


def test_the_first_four_fifths_of_the_lines_train_in_equal_streams(text_file: Path) -> None:
    parts = "\n".join(LINES[:96]) + "\n", "\n".join(LINES[96:]) + "\n"
    for rows, part in zip(read_back(recipe_for(text_file, min_freq=1)), parts, strict=True):
        stream = ((len(part) - 2) // 5 // 3) * 5
        assert ["".join(row) for row in rows] == [part[i * stream : (i + 1) * stream] for i in range(3)]


def test_targets_are_the_next_characters(text_file: Path) -> None:
    corpus = recipe_for(text_file).make_corpus()
    for batches in (corpus.train, corpus.valid):
        inputs, targets = (torch.cat(tensors, 1) for tensors in zip(*batches, strict=True))
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_words_are_tokens_and_so_are_line_ends(text_file: Path) -> None:
    train, _ = read_back(recipe_for(text_file, level="word", min_freq=1, batch_size=1))
    assert train[0][:12] == ["The", "first", "line,", "line", "0.", "\n", "The", "next", "line,", "line", "1.", "\n"]


def test_text_is_lower_cased_only_if_asked(text_file: Path) -> None:
    for lower in (False, True):
        recipe = recipe_for(text_file, lower=lower, min_freq=1)
        assert ("T" in recipe.make_corpus().vocabulary.tokens) is not lower
        assert recipe.split_prompt("The") == (list("the") if lower else list("The"))


def test_tokens_are_unknown_that_occur_fewer_than_min_freq_times(tmp_path: Path) -> None:
    assert replace_rare(list("aabbbc"), 3) == [UNKNOWN, UNKNOWN, "b", "b", "b", UNKNOWN]
    assert replace_rare(list("aabbbc"), 1) == list("aabbbc")
    path = tmp_path / "rare.txt"
    path.write_text("abc\n" * 40 + "xyx\n")
    assert recipe_for(path, min_freq=3).make_corpus().vocabulary.tokens == ("a", "b", "c", "\n", UNKNOWN)
    assert recipe_for(path, min_freq=2).make_corpus().vocabulary.tokens == ("a", "b", "c", "\n", "x", UNKNOWN)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\n" * 10, ("a\n" * 8, "a\n" * 2)),
        ("a\n" * 11 + "b", ("a\n" * 9, "a\n" * 2 + "b")),
        ("a\n\n" * 5, ("a\n\n" * 4, "a\n\n")),
        ("a\x0b\x85\u2028" * 9 + "\n" + "b\n" * 9, ("a\x0b\x85\u2028" * 9 + "\n" + "b\n" * 7, "b\n" * 2)),
        ("a\n" * 9, ("a\n" * 9, None)),
        ("a long text without an end", ("a long text without an end", None)),
    ],
)
def test_lines_end_in_line_feeds_alone_and_too_few_are_not_split(text: str, parts: tuple[str, str | None]) -> None:
    assert split_lines(text, 0.8) == parts


def test_a_text_of_one_line_is_split_between_sequences(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("abcde" * 100)
    corpus = recipe_for(path).make_corpus()
    assert (len(corpus.train), len(corpus.valid)) == (26, 6)


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("text", ["one", "one two", "one\n", "\none\n\ntwo three\nfour", ""])
def test_joining_undoes_cutting(level: Any, text: str) -> None:
    assert "".join(join_tokens(split_tokens(text, level), level)) == text


@pytest.mark.parametrize("content", [b"a\r\nb\rc\n", b"\xef\xbb\xbfa\nb\nc\n"])
def test_every_line_ends_alike_and_a_byte_order_mark_is_left_out(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert read_text(path) == "a\nb\nc\n"


def test_a_bad_byte_is_named_with_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin"
    path.write_bytes(b"ab\xc3\xa4\xe6c")
    with pytest.raises(DataError, match="is not utf-8: byte 0xe6 at offset 4 does not fit; name the encoding"):
        read_text(path)
    assert read_text(path, "latin-1") == "abÃ¤æc"
    with pytest.raises(DataError, match="is not ascii: byte 0xc3 at offset 2"):
        read_text(path, "ascii")


@pytest.mark.parametrize("encoding", ["klingon", "hex", "", "a\0b"])
def test_an_encoding_that_does_not_exist_is_named(encoding: str, text_file: Path) -> None:
    with pytest.raises(DataError, match="there is no text encoding"):
        read_text(text_file, encoding)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing").touch()
    with pytest.raises(DataError, match="nothing is empty"):
        read_text(tmp_path / "nothing")


def test_a_text_that_fills_no_batch_is_an_error_that_says_what_to_change(text_file: Path) -> None:
    with pytest.raises(DataError, match=r"too short: .* batch of 500; take a smaller batch_size \(500\)") as caught:
        recipe_for(text_file, batch_size=500).make_corpus()
    assert isinstance(caught.value, LanguageModelError)


def test_a_text_is_found_by_its_path_and_in_the_folder_of_the_environment(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSEDRNN_DATA", raising=False)
    assert find_text(str(text_file)) == text_file
    with pytest.raises(DataError, match=r"there is no file lines\.txt: then give its path \(--data\)"):
        find_text("lines.txt")
    monkeypatch.setenv("FUSEDRNN_DATA", str(text_file.parent))
    assert find_text("lines.txt") == text_file


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.data_url])
def test_a_recipe_whose_text_is_absent_says_what_to_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEDRNN_DATA", str(tmp_path / "data"))
    expected = rf"no file nietzsche\.txt or {tmp_path}/data/nietzsche\.txt: download https://\S+/nietzsche\.txt, and"
    with pytest.raises(DataError, match=expected):
        RECIPES[name].make_corpus()
