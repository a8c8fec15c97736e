from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusedrnn.lm import RECIPES, TEXT, DataError, Recipe, RecipeError, RunFolder, resume, train
from fusedrnn.lm import text as texts
from fusedrnn.lm.token_file import open_corpus

VERSES = "".join(f"Σίσυφος ΣΑΣ,  sang {n} Lieder\tund {n % 7} mehr\r\n" for n in range(60)) + "Ende"
SMALL = replace(TEXT, sequence_length=5, batch_size=3, hidden_size=8, embedding_size=8, epochs=2, cell="rnn_tanh")


def recipe_of(path: Path, content: str = VERSES, encoding: str = "utf-8", **changes) -> Recipe:
    path.write_bytes(content.encode(encoding))
    return replace(SMALL, data=str(path), encoding=encoding, **changes)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lower": True},
        {"level": "word"},
        {"level": "word", "lower": True, "min_freq": 1},
        {"min_freq": 70},
        {"encoding": "utf-16"},
        {"content": "abc " * 100 + "\nabc"},
        {"content": "word" + "\n" * 300},
        {"content": "\ufeff" + "".join(map(chr, range(33, 500))) * 3, "min_freq": 1},
        {"predict": "last"},
    ],
    ids=str,
)
def test_batches_are_those_of_the_text_in_memory(
    changes: dict, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path / "text.txt", **changes)
    expected = recipe.make_corpus()
    monkeypatch.setattr(texts.read_pieces, "__defaults__", ("utf-8", size))
    got = open_corpus(recipe, tmp_path / "tokens")
    assert got.vocabulary.tokens == expected.vocabulary.tokens
    for mine, right in ((got.train, expected.train), (got.valid, expected.valid)):
        assert len(mine) == len(right) > 0
        for batch, other in zip(mine, right, strict=True):
            for tensor, same in zip(batch, other, strict=True):
                assert tensor.dtype == torch.int64
                assert torch.equal(tensor, same)
    assert got.digest() == expected.digest()


def test_the_file_is_built_once_and_again_when_text_or_settings_change(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    recipe = recipe_of(tmp_path / "text.txt")
    open_corpus(recipe, path)
    first = path.stat().st_ino
    open_corpus(replace(recipe, batch_size=2, sequence_length=3), path)
    assert path.stat().st_ino == first
    assert open_corpus(replace(recipe, lower=True), path).digest() == replace(recipe, lower=True).make_corpus().digest()
    changed = recipe_of(tmp_path / "text.txt", VERSES.replace("sang", "sung"))
    assert open_corpus(changed, path).digest() == changed.make_corpus().digest()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.txt", "tokens"]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path / "text.txt")

    def fail(*arguments: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        open_corpus(recipe, tmp_path / "tokens")
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_a_run_is_bit_for_bit_that_of_the_text_in_memory(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "text.txt")
    train(recipe, tmp_path / "memory", quiet=True)
    train(recipe, tmp_path / "mapped", quiet=True, token_file=tmp_path / "tokens")
    memory, mapped = (RunFolder(tmp_path / name).load_checkpoint() for name in ("memory", "mapped"))
    assert mapped.settings.token_file == str(tmp_path / "tokens")
    for name, value in memory.model.state_dict().items():
        assert torch.equal(mapped.model.state_dict()[name], value)


def test_a_run_that_was_stopped_opens_its_file_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "text.txt")

    def stop(self: RunFolder, history) -> None:
        if len(list(history)) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_metrics", stop)
        train(recipe, tmp_path / "run", quiet=True, token_file=tmp_path / "tokens")
    (tmp_path / "tokens").unlink()
    assert resume(tmp_path / "run", quiet=True).epochs == 2
    assert (tmp_path / "tokens").is_file()


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        (RECIPES["hn-gru"], RecipeError, "human-numbers are no text file"),
        (replace(SMALL, data="text.txt", stateful=False), RecipeError, "serves recipes that carry their state"),
        (replace(SMALL, data="nowhere.txt"), DataError, "there is no file nowhere.txt"),
        (replace(SMALL, data="text.txt", batch_size=9999), DataError, "too short: .* do not fill one batch of 9999"),
        (replace(SMALL, data="text.txt", encoding="ascii"), DataError, "is not ascii: byte 0xce at offset 0 does not"),
    ],
)
def test_what_cannot_be_mapped_is_refused(
    recipe: Recipe, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe_of(tmp_path / "text.txt")
    with pytest.raises(error, match=message):
        open_corpus(recipe, tmp_path / "tokens")


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "text.txt")
    with pytest.raises(DataError, match=r"text\.txt is no token file"):
        open_corpus(recipe, tmp_path / "text.txt")
    assert (tmp_path / "text.txt").read_bytes() == VERSES.encode()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:16] + b"?" + b[17:], lambda b: b[:100]])
def test_a_damaged_file_is_named(damage, tmp_path: Path) -> None:
    recipe, path = recipe_of(tmp_path / "text.txt"), tmp_path / "tokens"
    open_corpus(recipe, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="tokens is damaged: remove it, to have it built again"):
        open_corpus(recipe, path)


PROGRAM = """
import resource, sys
from dataclasses import replace
from fusedrnn.lm import TEXT
from fusedrnn.lm.token_file import open_corpus

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

recipe = replace(TEXT, data=sys.argv[1], sequence_length=256, batch_size=64)
before = peak()
corpus = open_corpus(recipe, sys.argv[2])
tokens = sum(inputs.numel() for part in (corpus.train, corpus.valid) for inputs, _ in part)
print(tokens, peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_small_while_a_larger_file_is_built_and_read(tmp_path: Path) -> None:
    line = "the quick brown fox jumps over the lazy dog again\n"
    size = 80 << 20
    with (tmp_path / "text.txt").open("w") as file:
        for _ in range(size // (1000 * len(line))):
            file.write(line * 1000)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "text.txt"), str(tmp_path / "tokens")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens, rise = map(int, result.stdout.split())
    assert tokens > 0.99 * (tmp_path / "text.txt").stat().st_size
    assert (tmp_path / "tokens").stat().st_size > 0.99 * (tmp_path / "text.txt").stat().st_size
    assert rise < 40 << 20
