"""The sections that measure: what they ask of their workers, and what they keep when those stop, crash or hang."""

from __future__ import annotations

from pathlib import Path

import acceptance_fakes
import pytest
import torch
from acceptance import device_times, plan, timings
from acceptance.plan import Shape
from acceptance.sections import Blocked, Failed, Result
from acceptance_fakes import Answer, Call

SHAPES = [Shape("lstm", "float16", B, 1024, 768) for B in (1, 2, 3, 4)]


def row(shape: Shape, **facts) -> dict:
    return {"row": {"shape": shape._asdict(), "wrong": False, **facts}}


def lines(*shapes: Shape) -> list[dict]:
    return [line for shape in shapes for line in ({"begun": str(shape)}, row(shape))]


def measure(tmp_path: Path, answer, limit: float = 100, **changes):
    context, run, _ = acceptance_fakes.context(tmp_path, answer, **changes)
    found = Result("benchmark", "Benchmark")
    saved = []
    context.save = lambda: saved.append(len(found.details["rows"]))
    return run, found, saved, lambda: timings.measure(context, found, limit, "benchmark", SHAPES, {"algorithm": None})


def asked(call: Call) -> list[Shape]:
    return [Shape(*values) for values in call.request["shapes"]]


def test_the_most_telling_shape_comes_first_and_its_neighbours_next() -> None:
    shapes = plan.benchmark_shapes()
    assert shapes[0] == Shape("lstm", "float16", 16, 1024, 768)
    differences = [sum(a != b for a, b in zip(shape, shapes[0], strict=True)) for shape in shapes]
    assert differences[1:6] == [1] * 5 and len(set(shapes)) == len(shapes) == 3 * 4 * 4 * 2 * 5
    for name, wanted in {"B": {1, 16, 64, 128}, "H": {64, 256, 512, 768, 1024}, "T": {64, 1024}}.items():
        assert {getattr(shape, name) for shape in shapes} == wanted
    assert {shape.dtype for shape in shapes} | {shape.dtype for shape in plan.algorithm_shapes()} <= {
        *device_times.DTYPES
    }


def test_rows_are_kept_one_by_one(tmp_path: Path) -> None:
    run, found, saved, go = measure(tmp_path, lambda call: Answer(lines(*asked(call))))
    go()
    assert saved == [1, 2, 3, 4] and found.said == "4 of 4 shapes" and found.details["not_reached"] == []
    assert run.calls[0].command[1:4] == ["-m", "acceptance.worker", "benchmark"]
    assert run.calls[0].request["device"] == "cuda" and run.calls[0].request["seconds"] == pytest.approx(97)


def test_a_worker_that_is_out_of_time_leaves_a_list_of_what_it_did_not_reach(tmp_path: Path) -> None:
    run, found, _, go = measure(tmp_path, lambda call: Answer(lines(*SHAPES[:2]), seconds=97))
    go()
    assert found.details["not_reached"] == [str(SHAPES[2]), str(SHAPES[3])]
    assert found.said == "2 of 4 shapes" and len(run.calls) == 1


def test_a_worker_that_is_stopped_in_its_last_row_is_no_failure(tmp_path: Path) -> None:
    _, found, _, go = measure(tmp_path, lambda call: Answer([*lines(*SHAPES[:2]), {"begun": "x"}, "..."], seconds=101))
    go()
    assert found.said == "2 of 4 shapes"


@pytest.mark.parametrize("end", [{"returncode": -9}, {"stopped": "stopped after 45 s without a word"}])
def test_a_shape_that_a_worker_crashes_or_hangs_in_is_marked_and_the_rest_is_measured(
    tmp_path: Path, end: dict
) -> None:
    answers = iter([Answer([*lines(SHAPES[0]), {"begun": "x"}], **end), Answer(lines(*SHAPES[2:]))])
    run, found, _, go = measure(tmp_path, lambda call: next(answers))
    with pytest.raises(Failed, match=r"4 of 4 shapes; 1 failed or gave other results than nn.\*: lstm float16 B=2 "):
        go()
    assert asked(run.calls[1]) == SHAPES[2:]
    assert [bool(r.get("error")) for r in found.details["rows"]] == [False, True, False, False]


def test_a_worker_that_does_not_begin_is_not_tried_again(tmp_path: Path) -> None:
    run, found, _, go = measure(tmp_path, lambda call: Answer(["ImportError: no"], returncode=1))
    with pytest.raises(Failed, match="the worker did not begin: the process ended with 1"):
        go()
    assert len(run.calls) == 1 and found.details["output"] == "ImportError: no"


def test_a_worker_that_crashes_at_its_end_costs_nothing(tmp_path: Path) -> None:
    run, found, _, go = measure(tmp_path, lambda call: Answer(lines(*asked(call)), returncode=-11))
    go()
    assert len(run.calls) == 1 and found.said == "4 of 4 shapes"


def test_other_results_than_those_of_nn_fail_the_section(tmp_path: Path) -> None:
    rows = [*lines(*SHAPES[:3]), {"begun": "x"}, row(SHAPES[3], wrong=True)]
    _, _, _, go = measure(tmp_path, lambda call: Answer(rows))
    with pytest.raises(Failed, match="1 failed or gave other results"):
        go()


def test_without_a_build_or_without_a_row_there_is_nothing_to_say(tmp_path: Path) -> None:
    run, _, _, go = measure(tmp_path, lambda call: Answer(), built=False)
    with pytest.raises(Blocked):
        go()
    assert not run.calls
    _, _, _, go = measure(tmp_path, lambda call: Answer(["..."], seconds=500))
    with pytest.raises(Failed, match="no shape was reached"):
        go()


def test_one_algorithm_alone(tmp_path: Path) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, lambda call: Answer(lines(*asked(call))), algorithm="grid")
    timings.algorithms(context, Result("algorithms", ""), 100)
    timings.benchmark(context, Result("benchmark", ""), 100)
    assert run.calls[0].request["algorithms"] == [None, "grid"]
    assert run.calls[1].request["algorithm"] == "grid"


# ------------------------------------------------------------------------------------------------------- device_times


def test_functions_take_turns_by_the_timer_once_they_are_warm() -> None:
    calls: list[str] = []
    times = device_times.in_turns(
        [lambda: calls.append("a"), lambda: calls.append("b")],
        timer=lambda f: f() or float(len(calls)),
        seconds=13,
        clock=lambda: float(len(calls)),
    )
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 7  # of which six take twelve seconds
    assert times == [[7, 9, 11, 13, 15, 17, 19], [8, 10, 12, 14, 16, 18, 20]]


def test_both_sides_have_the_same_precision_which_is_restored() -> None:
    def state() -> tuple:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            cudnn.enabled,
            torch.backends.cuda.matmul.allow_tf32,
        )

    before = state()
    for dtype, wanted in (("tf32", ("high", True, True, True)), ("float32", ("highest", False, True, False))):
        with device_times.precision(dtype):
            assert state() == wanted
        assert state() == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["void fusedrnn::cuda::grid_forward<LSTM>", "fusedrnn::cuda::step_backward_kernel"],
            "forward grid, backward step",
        ),
        (["block_backward_kernel", "block_forward_kernel", "gemm"], "forward block, backward block"),
        (["gemm"], None),
    ],
)
def test_the_algorithm_is_read_off_the_kernels(names: list[str], expected: str | None) -> None:
    assert device_times.algorithms_in(names) == expected
