from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from killed_runs import RECIPE

from fusedrnn.lm import LanguageModelError, RunFolder, Trainer, resume, train
from fusedrnn.lm.commands import commands


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each scalar, as TensorBoard shows them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_step_and_epoch_is_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(RECIPE, tmp_path / "run", quiet=True, tensorboard=True)
    logged = read(tmp_path / "run")
    steps = 13 * RECIPE.epochs
    assert [step for step, _ in logged["step/loss"]] == list(range(1, steps + 1))
    rates = [value for _, value in logged["step/learning_rate"]]
    assert max(rates) == pytest.approx(RECIPE.learning_rate, rel=0.05)
    assert rates[-1] < rates[0] < max(rates)
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    for name in ("train_loss", "valid_loss", "accuracy", "tokens_per_second"):
        expected = [(13 * line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in lines]
        assert logged[f"epoch/{name}"] == expected


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    step = Trainer.step

    def stop(self: Trainer, *batch) -> float:
        if self.steps == 20:
            raise KeyboardInterrupt
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stop)
        train(RECIPE, tmp_path / "run", quiet=True, tensorboard=True)
    assert len(read(tmp_path / "run")["step/loss"]) == 20
    resume(tmp_path / "run", quiet=True)
    assert [step for step, _ in read(tmp_path / "run")["step/loss"]] == list(range(1, 13 * RECIPE.epochs + 1))


def test_nothing_is_logged_unless_asked_for(run_folder: Path) -> None:
    assert not (run_folder / "tensorboard").exists()


def test_a_missing_library_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = "TensorBoard logs need tensorboard: pip install 'fusedrnn[tensorboard]'"
    with pytest.raises(LanguageModelError) as error:
        train(RECIPE, tmp_path / "run", tensorboard=True)
    assert str(error.value) == message
    result = CliRunner().invoke(commands, ["train", "hn-gru", "--tensorboard", "--out", str(tmp_path / "run")])
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")
    assert not (tmp_path / "run").exists()
