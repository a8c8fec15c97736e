from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedrnn
from fusedrnn.lm import LanguageModelError, Recipe, RunFolder, RunFolderError, Vocabulary, train


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


def test_a_checkpoint_restores_the_model_that_was_saved(small_recipe: Recipe, tmp_path: Path) -> None:
    vocabulary = Vocabulary(["a", "b", "c"])
    model = small_recipe.make_model(3)
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(model, vocabulary, small_recipe, "nn")
    restored = folder.load_checkpoint()
    assert restored.recipe == small_recipe
    assert restored.vocabulary.tokens == ("a", "b", "c")
    assert type(restored.model.rnn) is torch.nn.GRU
    assert not restored.model.training
    assert restored.model.decoder.weight is restored.model.embedding.weight
    for name, value in model.state_dict().items():
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


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    folder = RunFolder(tmp_path)
    torch.save({"format": 1, "recipe": Payload()}, folder.checkpoint)
    with pytest.raises(RunFolderError):
        folder.load_checkpoint()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"not a checkpoint",
        lambda content: pickle.dumps({"format": 1}),
        lambda content: content.replace(b"vocabulary", b"vocabulerr"),
    ],
    ids=["empty", "half", "text", "pickle", "key"],
)
def test_a_damaged_checkpoint_gets_one_sentence(damage, run_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoint.write_bytes(damage((run_folder / "checkpoint.pt").read_bytes()))
    with pytest.raises(LanguageModelError, match=r"checkpoint\.pt is damaged, or no checkpoint of this program$"):
        folder.load_checkpoint()


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    torch.save({"format": 99}, folder.checkpoint)
    with pytest.raises(RunFolderError, match="has format 99, and this fusedrnn reads format 1"):
        folder.load_checkpoint()


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it holds no checkpoint\.pt"):
        RunFolder(tmp_path / "nowhere").load_checkpoint()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path)
    arguments = (small_recipe.make_model(3), Vocabulary("abc"), small_recipe, "fused")
    folder.save_checkpoint(*arguments)
    before = folder.checkpoint.read_bytes()

    def fill_the_disk(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        folder.save_checkpoint(*arguments)
    assert folder.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
