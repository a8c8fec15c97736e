"""The benchmark: how it times and judges, what it writes, what it refuses. Nothing here depends on a speed."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import fusedrnn
from fusedrnn.bench import end_to_end, masks, measure, memory, page, phases, report, subjects
from fusedrnn.bench.command import SECTIONS, bench
from fusedrnn.bench.measure import Comparison
from fusedrnn.bench.subjects import Row, Shape
from fusedrnn.lm.commands import commands

TINY = Shape(2, 3, 4, 5)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def row(ratio: float = 2.0, spread: float = 0.0, repeat: float = 0.0, **changes) -> Row:
    timing = Comparison(nn_ms=ratio, fused_ms=1.0, spread=spread, repeat=repeat, rounds=8)
    values = {"cell": "gru", "shape": TINY, "threads": 1, "task": "inference", "timing": timing, "flops": 10**9}
    return Row(**{**values, "peak": 2000.0, **changes})


class Machine:
    """A clock that functions move on by as many seconds as they are said to take, and the order of their calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def function(self, name: str, *seconds: float):
        durations = itertools.cycle(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(durations)

        return run


def test_functions_take_turns_once_they_are_warm() -> None:
    machine = Machine()
    times = measure.alternate([machine.function("a", 1 / 8), machine.function("b", 1 / 16)], 0.5, 2, machine.clock)
    assert machine.calls == ["a", "a", "b", "b", *("a", "b") * 3]
    assert times == [[125.0] * 3, [62.5] * 3]


def test_a_long_function_is_warm_after_one_call_and_runs_at_least_so_often() -> None:
    machine = Machine()
    times = measure.alternate([machine.function("a", 10.0), machine.function("b", 20.0)], 1.0, 4, machine.clock)
    assert machine.calls == ["a", "b"] * 5
    assert times == [[10_000.0] * 4, [20_000.0] * 4]


def test_the_medians_forget_a_few_slow_runs() -> None:
    machine = Machine()
    nn = machine.function("nn", *[0.5] * 7, 8.0)
    timing = measure.compare(nn, machine.function("fused", 0.25), 0, 16, calls=5, clock=machine.clock)
    assert (timing.nn_ms, timing.fused_ms, timing.ratio, timing.rounds) == (100.0, 50.0, 2.0, 16)
    assert timing.noise is None


def test_the_spread_is_half_the_interquartile_range_over_the_median() -> None:
    times = [float(n) for n in range(1, 101)]
    low, middle, high = statistics.quantiles(times, n=4)
    assert measure.spread(times) == (high - low) / 2 / middle
    assert measure.spread([3.0] * 9) == 0


def test_every_other_run_is_compared_with_the_rest() -> None:
    assert measure.repeat([1.0, 1.5, 1.0, 1.5]) == 0.5
    assert measure.repeat([1.5, 1.0, 1.5, 1.0]) == 0.5
    assert measure.repeat([1.0, 1.0, 5.0, 1.0, 1.0, 1.0]) == 0


@pytest.mark.parametrize(
    ("nn", "fused", "noise"),
    [
        ([1.0], [1.0], None),
        ([1.0], [0.5, 1.0, 1.5, 2.0], "runs spread by"),
        ([0.5, 1.0, 1.5, 2.0], [1.0], "runs spread by"),
        ([1.0, 1.06], [1.0], "nn.* against itself differs by 6%, more than 5%"),
        ([1.0, 1.04], [1.0], None),
    ],
)
def test_noise_of_either_side_is_noticed(nn: list[float], fused: list[float], noise: str | None) -> None:
    machine = Machine()
    timing = measure.compare(machine.function("nn", *nn), machine.function("fused", *fused), 0, 24, clock=machine.clock)
    assert (timing.noise is None) if noise is None else noise in str(timing.noise)


def test_the_verdict_names_what_is_too_noisy() -> None:
    good, bad = row(), row(spread=0.3, threads=2)
    assert "".join(report.verdict({"layers": [good]})) == "Quiet enough: all 1 comparisons allow a conclusion."
    lines = list(report.verdict({"layers": [good, bad], "memory": [object()]}))
    assert lines[1].startswith("Too noisy to conclude: 1 of 2 comparisons.")
    assert lines[2:] == ["  gru 2,3,4,5 inference, 2 threads: runs spread by 30%, more than 10%"]
    assert list(report.verdict({"memory": [object()]})) == []


def test_means_and_scaling_are_those_of_the_rows() -> None:
    other = Shape(1, 1, 1, 1)
    rows = [row(2.0), row(8.0, shape=other), row(3.0, threads=2), row(3.0, threads=2, shape=other, spread=1.0)]
    lines = [line.split() for line in report.summary("layers", rows)]
    assert ["gru", "1", "inference", "4.00", "2.00", "2,3,4,5"] in lines
    assert ["gru", "2", "inference", "3.00", "3.00", "2,3,4,5", "(1", "noisy)"] in lines
    assert ["gru", "2,3,4,5", "inference", "0.67", "1.00"] in lines
    assert ["gru", "1,1,1,1", "inference", "2.67", "1.00", "noisy"] in lines


def test_speed_is_that_of_the_products() -> None:
    measured = row(flops=sum(subjects.products("gru", TINY)) * 1000)
    assert subjects.products("gru", TINY) == (2 * 2 * 3 * 3 * 5 * 4, 2 * 2 * 3 * 3 * 5 * 5)
    assert measured.gflops == pytest.approx(1620 * 1000 / 1e-3 / 1e9)
    assert measured.peak_share == pytest.approx(measured.gflops / 2000)


def test_the_page_marks_noise() -> None:
    text = page.markdown({"layers": [row(), row(3.0, cell="lstm", spread=1.0)]})
    assert "| 2, 3, 4, 5 | 2.00 (1000) | ~3.00 (1000) |" in text
    assert "| geometric mean | 2.00 | 3.00 |" in text


def test_one_tiny_shape_fills_table_json_page_and_picture(tmp_path: Path) -> None:
    arguments = ("--shape", TINY, "--cell", "gru", "--cell", "lstm", "--threads", 1, "--seconds", 0)
    result = invoke(*arguments, "--out", tmp_path / "out", "--json", tmp_path / "deep" / "results.json")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    line = next(line for line in lines if line[:1] == ["gru"] and "training" in line)
    assert line[1:4] == [str(TINY), "1", "training"]
    assert "FMA peak:" in result.output and "geometric mean" in result.output
    content = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert content == json.loads((tmp_path / "deep/results.json").read_text())
    assert [(r["cell"], r["shape"], r["task"]) for r in content["layers"]] == [
        (cell, list(TINY), task) for cell in ("gru", "lstm") for task in ("inference", "training")
    ]
    for r in content["layers"]:
        assert r["ratio"] == r["nn_ms"] / r["fused_ms"] and r["gflops"] > 0 and 0 < r["peak_share"] < 1
    assert {r["task"] for r in content["steps"]} == {
        f"{kind}, {state}" for kind in ("module", "cell") for state in ("from zeros", "state carried")
    }
    assert set(content["machine"]["peak_gflops"]) == {"1"}
    assert (tmp_path / "out/benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/benchmark.md").read_text().startswith("1 thread:")


def test_no_file_is_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("--shape", TINY, "--cell", "gru", "--threads", 1, "--seconds", 0, "--sections", "layers")
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_early_ends_are_compared_by_the_token() -> None:
    ms = {masks.PLAIN: 2.0, masks.NN_PLAIN: 4.0, masks.NN_PACKED: 4.0, "resets": 3.0, "packed": 3.0}
    measured = masks.MaskRow(**vars(row(shape=Shape(2, 3, 4, 5), tokens=4)), ms=ms)  # of 6 in the padded batch
    assert [measured.cost(call) for call in ("resets", "packed", masks.NN_PACKED)] == [1.5, 2.25, 1.5]


def test_calls_with_masks_do_the_work_that_they_are_compared_by() -> None:
    shape = Shape(5, 12, 4, 3)
    theirs, ours = subjects.layers("gru", shape)
    y = {name: call()[0] for name, call in masks._calls(masks._inference, theirs, ours, shape).items()}
    tokens = int(masks._lengths(shape).sum())
    assert shape.B * 6 <= tokens < shape.B * shape.T
    assert [y[name].data.shape[0] for name in ("packed", "packed unsorted", masks.NN_PACKED)] == [tokens] * 3
    assert [int(y[name].any(-1).sum()) for name in ("lengths", "lengths unsorted")] == [tokens] * 2
    assert not torch.equal(y["resets"], y[masks.PLAIN])
    torch.testing.assert_close(y["packed"].data, y[masks.NN_PACKED].data)
    gradients = {name: call() for name, call in masks._calls(masks._training, theirs, ours, shape).items()}
    for ours_, theirs_ in zip(gradients["packed"], gradients[masks.NN_PACKED], strict=True):
        torch.testing.assert_close(ours_, theirs_)


def test_the_table_of_masks_ends_with_the_worst() -> None:
    result = invoke("--shape", TINY, "--cell", "gru", "--threads", 1, "--seconds", 0, "--sections", "masks")
    lines = [line.split() for line in result.output.splitlines()]
    costs = {line[3]: line[5:11] for line in lines if line[:3] == ["gru", str(TINY), "1"]}
    assert {line[0]: line[1:] for line in lines if line[:1] in (["inference"], ["training"])} == costs


def test_phases_of_a_pass_add_up_to_its_call() -> None:
    plan = subjects.Plan(("lstm",), (Shape(64, 8, 42, 64),), (1,), 0, peaks={1: 100.0})
    rows = list(phases.run(plan))
    assert torch.ops.fusedrnn.cpu_phases(False) == [0] * len(phases.NAMES)  # measuring is off again
    for name in phases.PASSES:
        of_pass = {r.phase: r for r in rows if r.run == name}
        assert of_pass[phases.CALL].share == 1
        assert sum(r.share for r in of_pass.values()) == pytest.approx(2, abs=0.3)  # medians do not add up exactly
        assert of_pass["loop"].gflops is not None and of_pass["loop"].peak_share == of_pass["loop"].gflops / 100
    assert "weight gradient" in {r.phase for r in rows if r.run == "backward"}


def test_errors_are_those_of_float32() -> None:
    result = invoke("--shape", TINY, "--threads", 1, "--seconds", 0, "--sections", "accuracy")
    lines = [line.split() for line in result.output.splitlines() if line.startswith(tuple(subjects.TITLES))]
    assert [line[3] for line in lines] == ["outputs", "gradients"] * 4
    assert all(float(error) < 1e-5 for line in lines for error in line[5:7])


def test_programs_are_compared_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "_LENGTH", 2)
    monkeypatch.setattr("fusedrnn.lm.trainer.Trainer.train_epoch", lambda self: sum(range(10_000)))
    rows = list(end_to_end.run(subjects.Plan(("gru", "rnn_tanh"), (), (1,), 0, least=2)))
    assert [(r.cell, r.task) for r in rows] == [("gru", "train hn-gru"), ("gru", "generate"), ("rnn_tanh", "generate")]
    assert [r.tokens for r in rows][1:] == [2, 2]


def test_memory_sees_an_allocation() -> None:
    if not memory._reset_peak():
        pytest.skip("the peak of this process cannot be reset")
    size = 192 << 20
    growth = memory.peak_growth(lambda: torch.ones(size, dtype=torch.uint8))
    assert size * 0.98 < growth < size * 1.1


def test_memory_of_a_training_step_is_measured_in_a_process_of_its_own() -> None:
    shape = Shape(64, 64, 64, 256)
    kept = 64 * 64 * 256 * 4  # bytes of y, c and each gate
    command = [sys.executable, "-m", "fusedrnn.bench.memory", json.dumps(["lstm", "fused", shape, 1])]
    bytes_ = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 4 * kept < bytes_ < 20 * kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "1,2,3"), "expected four sizes B,T,I,H of at least 1, such as 64,16,64,64, got '1,2,3'"),
        (("--shape", "1,2,3,0"), "expected four sizes B,T,I,H"),
        (("--shape", "1,2,3,x"), "expected four sizes B,T,I,H"),
        (("--cell", "rnn"), "'rnn' is not one of 'lstm', 'gru', 'rnn_relu', 'rnn_tanh'"),
        (("--threads", 0), "0 is not in the range x>=1"),
        (("--sections", "layers,speed"), f"expected some of {','.join(SECTIONS)}, got 'speed'"),
    ],
)
def test_a_bad_option_is_refused_with_what_was_expected(arguments: tuple[object, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_command_is_one_of_fusedrnn_and_restores_the_threads() -> None:
    assert commands.commands["bench"] is bench
    before = torch.get_num_threads()
    arguments = ["bench", "--threads", "2", "--shape", str(TINY), "--cell", "gru", "--seconds", "0"]
    assert CliRunner().invoke(commands, [*arguments, "--sections", "layers"]).exit_code == 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("cell", subjects.TITLES)
def test_both_sides_have_the_same_weights(cell: str) -> None:
    for make in (subjects.layers, subjects.cells):
        nn, fused = make(cell, TINY)
        assert type(nn).__name__ == type(fused).__name__ and type(fused).__module__.startswith(fusedrnn.__name__)
        for name, parameter in nn.named_parameters():
            torch.testing.assert_close(fused.get_parameter(name), parameter, rtol=0, atol=0)
        assert getattr(nn, "nonlinearity", None) == getattr(fused, "nonlinearity", None)
