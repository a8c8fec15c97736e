from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import fusedrnn
from fusedrnn.lm import Corpus, Recipe, RunFolder, RunFolderError, Settings, Trainer, resume, train


def hash_of(state: object) -> bytes:
    """Of every value and of every bit of every tensor in a nest of dicts and lists."""
    if isinstance(state, torch.Tensor):
        return repr((state.dtype, state.shape)).encode() + state.contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return b"{%s}" % b",".join(repr(key).encode() + hash_of(value) for key, value in state.items())
    if isinstance(state, list | tuple):
        return b"[%s]" % b",".join(map(hash_of, state))
    return repr(state).encode()


def test_a_finished_run_is_complete(run_folder: Path, small_recipe: Recipe) -> None:
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "checkpoint.pt",
        "curves.png",
        "metrics.jsonl",
        "summary.json",
    ]
    summary = json.loads((run_folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    value, seconds, rate = (summary.pop(key) for key in ("value", "seconds", "tokens_per_second"))
    assert summary == {
        "recipe": "hn-gru",
        "metric": "accuracy",
        "target": 0.95,
        "backend": "fused",
        "seed": 3,
        "epochs": 2,
        "threads": 1,
        "torch": torch.__version__,
        "fusedrnn": fusedrnn.__version__,
    }
    assert [line["epoch"] for line in lines] == [1, 2]
    assert value == lines[-1]["accuracy"]
    assert seconds == pytest.approx(sum(line["seconds"] for line in lines))
    assert min(line["tokens_per_second"] for line in lines) <= rate <= max(line["tokens_per_second"] for line in lines)
    assert {"train_loss", "valid_loss"} <= lines[0].keys()


def test_curves_are_a_picture(run_folder: Path) -> None:
    picture = (run_folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")


@pytest.fixture
def saved(small_recipe: Recipe, small_corpus: Corpus) -> Callable[..., RunFolder]:
    """Writes the checkpoint of a trainer that has not trained."""

    def save(folder: RunFolder, recipe: Recipe = small_recipe) -> RunFolder:
        trainer = Trainer(recipe.make_model(len(small_corpus.vocabulary)), small_corpus, recipe)
        folder.save_checkpoint(trainer.state_dict(), Settings.of_this_process("nn", 0, None))
        return folder

    return save


def test_a_checkpoint_restores_the_model_that_was_saved(
    small_recipe: Recipe, small_corpus: Corpus, tmp_path: Path
) -> None:
    trainer = Trainer(small_recipe.make_model(len(small_corpus.vocabulary), "fused"), small_corpus, small_recipe)
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(trainer.state_dict(), Settings.of_this_process("nn", 7, 11))
    restored = folder.load_checkpoint()
    assert restored.recipe == small_recipe
    assert restored.vocabulary.tokens == small_corpus.vocabulary.tokens
    assert restored.settings == Settings.of_this_process("nn", 7, 11)
    assert type(restored.model.rnn) is torch.nn.GRU
    assert not restored.model.training
    assert restored.model.decoder.weight is restored.model.embedding.weight
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(restored.model.state_dict()[name], value)


def test_an_existing_run_is_refused_and_left_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="exists already: choose another folder"):
        train(small_recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(path)
    assert path.read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path).path == tmp_path


def rewrite(source: RunFolder, folder: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    """Saves a checkpoint again, whole and with valid checksums, with something changed."""
    content = torch.load(source.checkpoint, weights_only=True)
    change(content)
    torch.save(content, folder.checkpoint)


def refused(folder: RunFolder, message: str) -> None:
    """Neither generation nor training takes the checkpoint; both say why in a sentence and leave every byte alone."""
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    for use in (folder.load_checkpoint, lambda: resume(folder.path, quiet=True)):
        with pytest.raises(RunFolderError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


DAMAGED = r"checkpoint\.pt is damaged, or no checkpoint of this program$"


@pytest.mark.parametrize("pickled", ["in a checkpoint", "by torch", "alone"])
def test_a_checkpoint_runs_no_code(pickled: str, run_folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    folder = RunFolder.create(tmp_path / "run")
    if pickled == "in a checkpoint":
        rewrite(RunFolder(run_folder), folder, lambda content: content["trainer"].update(steps=Payload()))
    elif pickled == "by torch":
        torch.save(Payload(), folder.checkpoint)
    else:
        folder.checkpoint.write_bytes(pickle.dumps(Payload()))
    refused(folder, DAMAGED)
    assert not (tmp_path / "executed").exists()
    if pickled != "in a checkpoint":  # the payload is a live one
        with folder.checkpoint.open("rb") as file:
            (pickle.load if pickled == "alone" else partial(torch.load, weights_only=False))(file)
        assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04", pickle.dumps({"format": 2})],
    ids=["empty", "text", "zip", "pickle"],
)
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoint.write_bytes(content)
    refused(folder, DAMAGED)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"format": 2}, torch.zeros(3)], ids=["list", "empty", "keys", "tensor"]
)
def test_another_file_of_torch_is_refused(content: object, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    torch.save(content, folder.checkpoint)
    refused(folder, DAMAGED)


def test_a_truncated_checkpoint_is_refused_at_every_length(run_folder: Path, tmp_path: Path) -> None:
    content = (run_folder / "checkpoint.pt").read_bytes()
    folder = RunFolder(tmp_path)
    for length in [*range(0, len(content), len(content) // 40), len(content) - 1]:
        folder.checkpoint.write_bytes(content[:length])
        refused(folder, DAMAGED)


def test_a_flipped_byte_is_noticed_or_changes_nothing(run_folder: Path, tmp_path: Path) -> None:
    """Torch itself would load flipped bytes of a tensor as they are."""
    content = (run_folder / "checkpoint.pt").read_bytes()
    expected = hash_of(RunFolder(run_folder).load_checkpoint().state)
    with zipfile.ZipFile(run_folder / "checkpoint.pt") as archive:
        stored = sum(info.file_size for info in archive.infolist())
    folder = RunFolder(tmp_path)
    random = Random(0)
    flips, noticed = 200, 0
    for _ in range(flips):
        flipped = bytearray(content)
        flipped[random.randrange(len(content))] ^= random.randrange(1, 256)
        folder.checkpoint.write_bytes(flipped)
        try:
            loaded = folder.load_checkpoint()
        except RunFolderError as error:
            assert re.search(DAMAGED, str(error))
            noticed += 1
        else:  # of the padding or the names in the archive
            assert hash_of(loaded.state) == expected
    assert noticed > 0.9 * flips * stored / len(content)


@pytest.mark.parametrize("key", ["settings", "trainer", "recipe", "vocabulary", "model"])
def test_a_checkpoint_that_lacks_a_key_is_refused(key: str, run_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rewrite(RunFolder(run_folder), folder, lambda c: (c if key in c else c["trainer"]).pop(key))
    refused(folder, DAMAGED)


@pytest.mark.parametrize("format", [1, 99])
def test_a_checkpoint_of_another_format_is_refused(format: int, run_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rewrite(RunFolder(run_folder), folder, lambda content: content.update(format=format))
    refused(folder, f"has format {format}, and this fusedrnn reads format 2$")


def test_a_recipe_that_says_more_than_this_version_knows_is_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rewrite(RunFolder(run_folder), folder, lambda content: content["trainer"]["recipe"].update(zoneout=0.1))
    refused(folder, r"was written by fusedrnn .*, whose recipes say more than this fusedrnn .* knows \(zoneout\)$")


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    for use in (RunFolder(tmp_path / "nowhere").load_checkpoint, lambda: resume(tmp_path)):
        with pytest.raises(RunFolderError, match=r"is not a run folder: it holds no checkpoint\.pt"):
            use()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    saved: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(RunFolder.create(tmp_path))
    before = folder.checkpoint.read_bytes()

    def fill_the_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fill_the_disk)
            with pytest.raises(RunFolderError, match=r"checkpoint\.pt cannot be written: No space left on device$"):
                saved(folder)
        assert folder.checkpoint.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_killed_run_left_half_written_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.4321").write_bytes(b"half")
    folder = RunFolder.create(tmp_path)
    with folder.lock():
        assert not any(tmp_path.iterdir())
    (tmp_path / ".checkpoint.pt.mine").write_bytes(b"a user's")
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(tmp_path)
    with folder.lock():
        assert [path.name for path in tmp_path.iterdir()] == [".checkpoint.pt.mine"]


def test_two_processes_cannot_write_one_run(small_recipe: Recipe, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.lock():  # a lock belongs to what opened the folder, so that one process can stand for two
        with pytest.raises(RunFolderError, match="is in use: another process writes its run into it"):
            train(small_recipe, folder.path)
        assert not any(folder.path.iterdir())
    with folder.lock():
        pass
