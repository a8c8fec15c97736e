from __future__ import annotations

import dataclasses
import io
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from killed_runs import RECIPE, bits, result

from fusedrnn.lm import (
    DivergedError,
    Recipe,
    ResumeWarning,
    RunFolder,
    RunFolderError,
    StateError,
    Trainer,
    resume,
    train,
)
from fusedrnn.lm.commands import commands
from fusedrnn.lm.data import SOURCES

STEPS = 13  # of an epoch of RECIPE


def new_trainer(recipe: Recipe = RECIPE, backend="fused", seed: int = 0, dtype=torch.float32) -> Trainer:
    torch.manual_seed(seed)
    corpus = recipe.make_corpus()
    return Trainer(recipe.make_model(len(corpus.vocabulary), backend).to(dtype), corpus, recipe)


def trained(trainer: Trainer, at: int | None = None) -> dict:
    """Trains to the end; gives the state after a step, through a file, or that of the end."""
    files = [io.BytesIO()]

    def save(*_: object) -> None:
        if trainer.steps == at:
            torch.save(trainer.state_dict(), files[0])

    save()
    for _ in trainer.epochs(save):
        pass
    if at is None:
        return trainer.state_dict()
    return torch.load(io.BytesIO(files[0].getvalue()), weights_only=True)


@pytest.fixture
def interrupted(tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run that was stopped in the middle of a step."""

    def run(at: int = 20, recipe: Recipe = RECIPE, checkpoint_every: int | None = 4) -> Path:
        class Stopped(Exception):
            pass

        def stop(self: Trainer, *batch: torch.Tensor) -> float:
            if self.steps == at:
                raise Stopped
            return step(self, *batch)

        step = Trainer.step
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(Trainer, "step", stop)
            train(recipe, tmp_path / "run", seed=1, quiet=True, checkpoint_every=checkpoint_every)
        return tmp_path / "run"

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    train(RECIPE, path, seed=1, quiet=True)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# The trainer's state


@pytest.mark.parametrize(
    "changes, backend",
    [
        *itertools.product([{"cell": "lstm"}, {"cell": "gru"}, {"cell": "rnn_tanh"}], ["fused", "nn", "reference"]),
        ({"backprop_length": 40}, "fused"),
    ],
    ids=str,
)
def test_a_trainer_goes_on_from_a_state_with_the_same_bits(changes, backend) -> None:
    recipe = dataclasses.replace(RECIPE, **changes)
    expected = bits(trained(new_trainer(recipe, backend)))
    # In the middle of an epoch, and after its last step, before it is validated.
    for at in (7, STEPS):
        state = trained(new_trainer(recipe, backend), at)
        other = new_trainer(recipe, backend, seed=99)
        trained(new_trainer(recipe, backend, seed=98), at=0)  # draws numbers
        other.load_state_dict(state)
        assert (other.steps, other.position) == (at, at)
        assert bits(other.state_dict()) == bits(state)
        assert bits(trained(other)) == expected


@pytest.mark.parametrize("schedule", ["one-cycle", "stepwise"])
def test_windows_of_random_lengths_go_on_with_the_same_bits(schedule) -> None:
    changes = {"momentum": (0.9, 0.9), "rates": ((1, 1e-3), (2, 1e-4))} if schedule == "stepwise" else {}
    recipe = dataclasses.replace(RECIPE, length_deviation=2.0, length_halved=0.3, schedule=schedule, **changes)
    expected = trained(new_trainer(recipe))
    trainer = new_trainer(recipe)
    ends = [trainer.windows.start(epoch + 1) for epoch in range(recipe.epochs)]
    assert expected["steps"] == ends[-1]
    assert len({*ends, 0}) == 4 and ends != [STEPS, 2 * STEPS, 3 * STEPS]
    for at in (0, 7, ends[0], ends[0] + 5, ends[2] - 1):
        state = trained(new_trainer(recipe), at)
        other = new_trainer(recipe, seed=99)
        other.load_state_dict(state)
        assert bits(other.state_dict()) == bits(state)
        assert bits(trained(other)) == bits(expected)


def test_a_state_between_epochs_goes_on_with_the_same_bits() -> None:
    first, second = new_trainer(), new_trainer(seed=99)
    for _ in first.epochs():
        break
    second.load_state_dict(first.state_dict())
    generator = torch.get_rng_state()
    expected = bits(trained(first))
    torch.set_rng_state(generator)
    assert bits(trained(second)) == expected


def test_a_state_goes_on_on_another_backend() -> None:
    state = trained(new_trainer(dtype=torch.float64), at=20)
    losses = []
    for backend in ("fused", "nn", "reference"):
        trainer = new_trainer(backend=backend, dtype=torch.float64)
        trainer.load_state_dict(state)
        *_, last = trainer.epochs()
        losses.append(last.train_loss)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-9)


def test_what_is_loaded_is_copied() -> None:
    state = trained(new_trainer(), at=7)
    before = bits(state)
    trainer = new_trainer()
    trainer.load_state_dict(state)
    trained(trainer)
    assert bits(state) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("hidden"), "no state of a trainer: it lacks hidden"),
        (lambda s: s["recipe"].update(clip=1.0), r"another recipe: clip is 1\.0 there, None here"),
        (lambda s: s["vocabulary"].append("z"), "vocabulary of 9 tokens is not that of the text here, of 8 tokens"),
        (lambda s: s["vocabulary"].reverse(), "vocabulary of 8 tokens is not that of the text"),
        (lambda s: s.update(text="0"), "not the one that the state was trained on"),
        (
            lambda s: s["model"].update({"decoder.bias": torch.ones(9)}),
            r"decoder\.bias is float32 \[9\] there, float32 \[",
        ),
        (lambda s: s["model"].pop("decoder.bias"), r"decoder\.bias is missing there, float32 \[8\] here"),
        (
            lambda s: s["model"].update({"decoder.bias": torch.ones(8).double()}),
            r"decoder\.bias is float64 \[8\] there",
        ),
        (lambda s: s["optimizer"]["param_groups"].clear(), "the state is of another optimizer: "),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message: str) -> None:
    state = trained(new_trainer(), at=7)
    trainer = new_trainer(seed=5)
    before = bits(trainer.state_dict())
    change(state)
    with pytest.raises(StateError, match=message):
        trainer.load_state_dict(state)
    assert bits(trainer.state_dict()) == before


def test_a_state_of_before_a_field_was_added_goes_on() -> None:
    state = trained(new_trainer(), at=7)
    for field in ("weight_drop", "detach_every", "clip_value"):
        del state["recipe"][field]
    new_trainer().load_state_dict(state)
    with pytest.raises(StateError, match=r"another recipe: weight_drop is 0\.0 there, 0\.5 here"):
        new_trainer(dataclasses.replace(RECIPE, weight_drop=0.5)).load_state_dict(state)


def test_a_recipe_may_be_described_in_other_words() -> None:
    state = trained(new_trainer(), at=7)
    new_trainer(dataclasses.replace(RECIPE, measured="better", target=0.99)).load_state_dict(state)


# Runs


@pytest.mark.parametrize("at", [0, 1, STEPS - 1, STEPS, 20, 3 * STEPS - 1])
def test_a_resumed_run_leaves_what_an_unbroken_one_leaves(at: int, interrupted, whole: Path) -> None:
    path = interrupted(at)
    saved = RunFolder(path).load_checkpoint().state
    assert at - 4 < saved["steps"] <= at
    summary = resume(path, quiet=True)
    assert result(path) == result(whole)
    assert summary.seconds == pytest.approx(
        sum(m["seconds"] for m in RunFolder(path).load_checkpoint().state["history"])
    )


def test_without_an_interval_checkpoints_are_of_the_ends_of_epochs(interrupted, whole: Path) -> None:
    path = interrupted(STEPS + 5, checkpoint_every=None)
    assert RunFolder(path).load_checkpoint().state["steps"] == STEPS
    resume(path, quiet=True)
    assert result(path) == result(whole)


def test_the_time_before_the_stop_counts(interrupted) -> None:
    path = interrupted(7)
    folder = RunFolder(path)
    checkpoint = folder.load_checkpoint()
    folder.save_checkpoint({**checkpoint.state, "seconds": 1000.0}, checkpoint.settings)
    summary = resume(path, quiet=True)
    assert 1000 < summary.seconds < 1100
    assert summary.tokens_per_second < 3 * STEPS * 24 / 1000


def test_metrics_are_those_of_the_checkpoint(interrupted, whole: Path) -> None:
    path = interrupted(STEPS + 3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half a li')
    resume(path, quiet=True)
    assert result(path) == result(whole)


def test_a_run_that_was_stopped_before_its_summary_is_summed_up(interrupted, monkeypatch, whole: Path) -> None:
    path = interrupted()
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            resume(path, quiet=True)
    resume(path, quiet=True)
    assert result(path) == result(whole)


def test_a_finished_run_says_so_and_is_left_alone(whole: Path) -> None:
    before = contents(whole)
    with pytest.warns(ResumeWarning, match=r"the run in .* is finished: all of its 3 epochs are done$"):
        summary = resume(whole, quiet=True)
    assert contents(whole) == before
    assert f'"value": {summary.value}' in before["summary.json"].decode()


@pytest.mark.parametrize(
    ("field", "then", "message"),
    [
        ("threads", 3, r"goes on with threads 2 \(was 3\): weights may differ in the last bits"),
        ("torch", "2.11.0", r"goes on with torch .* \(was 2\.11\.0\)"),
        ("fusedrnn", "0.0.1", r"goes on with fusedrnn .* \(was 0\.0\.1\)"),
        ("isa", "abacus", r"goes on with isa .* \(was abacus\)"),
    ],
)
def test_what_changes_the_last_bits_is_told(field: str, then: object, message: str, interrupted) -> None:
    path = interrupted(3 * STEPS - 1)
    folder = RunFolder(path)
    checkpoint = folder.load_checkpoint()
    folder.save_checkpoint(checkpoint.state, dataclasses.replace(checkpoint.settings, **{field: then}))
    with pytest.warns(ResumeWarning, match=message):
        resume(path, threads=2 if field == "threads" else None, quiet=True)


def test_a_run_goes_on_with_the_threads_that_it_had(interrupted) -> None:
    path = interrupted(3 * STEPS - 1)
    torch.set_num_threads(2)
    assert resume(path, quiet=True).threads == torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abcdefghi" * 44, "vocabulary of 8 tokens is not that of the text here, of 9 tokens$"),
        (SOURCES["tiny"]()[:-30] + ["a"] * 30, "the text here is not the one that the state was trained on"),
    ],
    ids=["vocabulary", "order"],
)
def test_another_text_is_refused_and_nothing_overwritten(text, message: str, interrupted, monkeypatch) -> None:
    path = interrupted()
    before = contents(path)
    monkeypatch.setitem(SOURCES, "tiny", lambda: list(text))
    with pytest.raises(RunFolderError, match=rf"checkpoint\.pt cannot be resumed: .*{message}"):
        resume(path, quiet=True)
    assert contents(path) == before


def test_the_interval_of_checkpoints_can_be_changed(interrupted) -> None:
    path = interrupted(20, checkpoint_every=None)
    resume(path, quiet=True, checkpoint_every=6)
    assert RunFolder(path).load_checkpoint().settings.checkpoint_every == 6
    for call in (lambda: resume(path, checkpoint_every=0), lambda: train(RECIPE, path, checkpoint_every=0)):
        with pytest.raises(ValueError, match="checkpoint_every: expected at least 1, got 0"):
            call()


def test_weights_that_are_no_longer_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def spoil(self: Trainer, *batch: torch.Tensor) -> float:
        loss = step(self, *batch)
        if self.steps == 20:  # the loss of this step was finite, that of the next one is not
            with torch.no_grad():
                self.model.decoder.bias[0] = float("nan")
        return loss

    monkeypatch.setattr(Trainer, "step", spoil)
    for every, message in ((4, r"decoder\.bias is no longer finite after step 20"), (3, "loss at step 21 is nan")):
        path = tmp_path / str(every)
        kept = {4: 16, 3: 18}[every]
        with pytest.raises(DivergedError, match=rf"{message}: .*; .*checkpoint\.pt keeps the model of step {kept}$"):
            train(RECIPE, path, seed=1, quiet=True, checkpoint_every=every)
        state = RunFolder(path).load_checkpoint().state
        assert state["steps"] == kept
        assert all(tensor.isfinite().all() for tensor in state["model"].values())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files end after some bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_costs_only_the_new_checkpoint(interrupted, whole: Path) -> None:
    path = interrupted()
    before = contents(path)
    with (
        largest_file(10_000),
        pytest.raises(
            RunFolderError, match=rf"checkpoint\.pt cannot be written: .*; .*--resume {path}` goes on from step 20$"
        ),
    ):
        resume(path, quiet=True)
    assert contents(path) == before
    resume(path, quiet=True)
    assert result(path) == result(whole)


def test_a_disk_that_is_full_from_the_start_leaves_an_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with largest_file(10_000), pytest.raises(RunFolderError, match=r"checkpoint\.pt cannot be written: [\w ]+$"):
        train(RECIPE, path, seed=1, quiet=True)
    assert not any(path.iterdir())


def test_a_full_file_system_costs_only_the_new_checkpoint(interrupted, tmp_path: Path, whole: Path) -> None:
    disk, path = tmp_path / "disk", interrupted()
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    try:
        for name, content in contents(path).items():
            (disk / name).write_bytes(content)
        filler = disk / "filler"
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        with pytest.raises(
            RunFolderError, match=r"cannot be written: No space left on device; .* goes on from step 20$"
        ):
            resume(disk, quiet=True)
        filler.unlink()
        resume(disk, quiet=True)
        assert result(disk) == result(whole)
    finally:
        subprocess.run(["umount", disk], check=True)


# Killed processes


# How many kills a run meets at random times depends on how fast the machine is.
@pytest.mark.parametrize(("moments", "least"), [("everywhere", 25), ("anytime", 3)])
def test_killed_runs_end_with_the_bits_of_unbroken_ones(moments: str, least: int) -> None:
    program = Path(__file__).parents[1] / "killed_runs.py"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # most of the time is a disk's
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        run = subprocess.run([sys.executable, program, moments, folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[0]) >= least


# The command


def test_the_command_goes_on_and_says_when_nothing_is_left(interrupted, whole: Path) -> None:
    path = interrupted()
    arguments = ["train", "--resume", str(path), "--quiet"]
    first = CliRunner().invoke(commands, arguments)
    assert first.exit_code == 0
    assert first.output.startswith("hn-gru: accuracy 0.")
    assert result(path) == result(whole)
    again = CliRunner().invoke(commands, arguments)
    assert again.exit_code == 0
    assert again.output == f"the run in {path} is finished: all of its 3 epochs are done\n{first.output}"


def test_the_progress_bar_goes_on_too(interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    path = interrupted(20)
    monkeypatch.setattr("sys.stderr", output)
    resume(path)
    assert output.getvalue().split("\r")[1].startswith("hn-gru:  51%")  # 20 of 39 steps
    assert "hn-gru: 100%" in output.getvalue()
