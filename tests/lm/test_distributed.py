"""Several processes. Each test starts its own with torchrun, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import killed_runs
import pytest
import ranks
import torch

from fusedrnn.lm import RecipeError, ResumeWarning, RunFolder, resume, train
from fusedrnn.lm.distributed import ALONE, Processes, local_device

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

SMALL = {"epochs": 2, "hidden_size": 8, "embedding_size": 8, "num_layers": 1, "dropout": 0}


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join([str(Path(ranks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    arguments = [*start, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]


def test_gradients_are_those_of_one_process_with_all_the_rows() -> None:
    result = torchrun(ranks.__file__, "gradients")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one_and_is_written_once(tmp_path: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    command = ("-m", "fusedrnn", "train", "hn-gru", *settings, "--seeds", 2, "--out", tmp_path / "two")
    result = torchrun(*command)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert [line.split()[1] for line in said] == ["accuracy"] * 3, result.stdout
    assert "the mean of the seeds 0 to 1" in said[-1]
    recipe = RunFolder(tmp_path / "two/seed-1").load_checkpoint().recipe
    train(recipe, tmp_path / "one", seed=1)
    assert sorted(os.listdir(tmp_path / "two/seed-1")) == sorted(os.listdir(tmp_path / "one"))
    for two, one in zip(lines(tmp_path / "two/seed-1"), lines(tmp_path / "one"), strict=True):
        assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-4)
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert RunFolder(tmp_path / "two/seed-1").load_checkpoint().settings.processes == 2


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = torchrun(ranks.__file__, "stop", tmp_path / "whole", 10**6)
    assert whole.returncode == 0, whole.stderr
    for path, step in ((tmp_path / "a", 20), (tmp_path / "b", 3)):
        assert torchrun(ranks.__file__, "stop", path, step).returncode != 0
        result = torchrun(killed_runs.__file__, "resume", path)
        assert result.returncode == 0, result.stderr
        assert killed_runs.result(path) == killed_runs.result(tmp_path / "whole")
    state = RunFolder(tmp_path / "a").load_checkpoint().state["generators"]
    assert sorted(state) == ["cpu", "cpu of process 1"]
    assert not torch.equal(state["cpu"], state["cpu of process 1"])


def test_one_process_goes_on_with_a_run_of_two(tmp_path: Path) -> None:
    assert torchrun(ranks.__file__, "stop", tmp_path / "run", 20).returncode != 0
    hidden = RunFolder(tmp_path / "run").load_checkpoint().state["hidden"]
    assert [h.shape[1] for h in hidden] == [killed_runs.RECIPE.batch_size] * 2
    with pytest.warns(ResumeWarning, match=r"goes on with processes 1 \(was 2\): weights may differ"):
        assert resume(tmp_path / "run", quiet=True).epochs == killed_runs.RECIPE.epochs


def test_a_loss_that_is_no_number_in_one_process_stops_all(tmp_path: Path) -> None:
    result = torchrun(ranks.__file__, "diverge", tmp_path / "run")
    assert result.returncode != 0
    assert result.stderr.count("DivergedError: the training loss at step 7 is nan") >= 2
    assert RunFolder(tmp_path / "run").load_checkpoint().state["steps"] == 4


@pytest.mark.parametrize("size", [3, 8])
def test_rows_that_cannot_be_split_are_refused(size: int) -> None:
    with pytest.raises(RecipeError, match=rf"batch_size: expected a multiple of the {size} processes, got 4"):
        ranks.make(replace(killed_runs.RECIPE, batch_size=4), "fused", Processes(0, size))


def test_every_row_belongs_to_one_process() -> None:
    batch = torch.arange(12).view(6, 2), torch.arange(6).view(6, 1)
    parts = [Processes(rank, 3).part(batch, torch.device("cpu")) for rank in range(3)]
    for whole, pieces in zip(batch, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole)
        assert [len(piece) for piece in pieces] == [2, 2, 2]


def test_one_process_speaks_to_nobody() -> None:
    states = (torch.randn(2, 4, 3),)
    joined = ALONE.join_rows(states)
    assert joined is not None and joined[0] is states[0]
    assert ALONE.sum(1.5, 2) == [1.5, 2]
    assert ALONE.mean(1.5) == [1.5]
    assert ALONE.find(ALONE.join({"cpu": states[0]}), "cpu") is states[0]


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match=f"device: '{device}' cannot be used: "):
        local_device(device)
