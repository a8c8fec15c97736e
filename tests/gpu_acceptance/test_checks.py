"""The sections that pass or fail, on a machine that is made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import acceptance_fakes
import pytest
from acceptance import checks
from acceptance.checks import SANITIZERS
from acceptance.sections import Blocked, Failed, Overran, Result, Skipped
from acceptance_fakes import MACHINE, Answer, Call

INFO = {"cuda_kernels": "13.0", "no_cuda_reason": None, "path": "/out/lib/fusedrnn"}


def result() -> Result:
    return Result("section", "Section")


# ---------------------------------------------------------------------------------------------------------------- build


def builder(call: Call) -> Answer:
    return Answer(["compiling"], 50) if "setup.py" in call.command else Answer([INFO])


def test_the_build_is_for_this_gpu_and_in_a_folder_of_its_own(tmp_path: Path) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, builder, built=False)
    found = result()
    checks.build(context, found, 200)
    build, ask = run.calls
    assert build.command[1:] == ["setup.py", "build", "--build-lib", str(tmp_path / "lib")]
    assert build.cwd == context.tree and build.limit == 200
    assert build.env == {"FUSEDRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert ask.command[1:] == ["-m", "acceptance.worker", "info"] and ask.cwd == tmp_path
    assert context.built and found.said == "CUDA 13.0, from /out/lib/fusedrnn"


def test_what_was_built_comes_before_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    context, _, _ = acceptance_fakes.context(tmp_path, builder)
    benchmarks = str(tmp_path / "tree" / "benchmarks")
    assert context.environment() == {"PYTHONPATH": f"{benchmarks}:/theirs"}
    (tmp_path / "lib" / "fusedrnn").mkdir(parents=True)
    assert context.environment() == {"PYTHONPATH": f"{tmp_path / 'lib'}:{benchmarks}:/theirs"}


def test_without_a_build_only_the_question_is_asked(tmp_path: Path) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, builder, built=False, build=False)
    checks.build(context, result(), 200)
    assert [call.command[-1] for call in run.calls] == ["info"] and context.built


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"packages": {"ninja": None, "setuptools": None}}, "setuptools and ninja missing from this Python"),
        ({"packages": {"ninja": "1", "setuptools": None}}, "pip install setuptools"),
        ({"nvcc": None}, "no nvcc was found"),
        ({"compiler": None}, "no C\\+\\+ compiler was found"),
    ],
)
def test_a_build_that_lacks_something_says_what(tmp_path: Path, changes: dict, said: str) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, builder, built=False, machine=replace(MACHINE, **changes))
    with pytest.raises(Failed, match=said):
        checks.build(context, result(), 200)
    assert not run.calls and not context.built


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (Answer(["error: no", ""], returncode=1), Failed, "setup.py failed: error: no"),
        (Answer(["nvcc"], seconds=500), Overran, "stopped after 200 s"),
    ],
)
def test_a_build_that_fails_or_takes_too_long(tmp_path: Path, answer: Answer, kind: type[Exception], said: str) -> None:
    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: answer, built=False)
    found = result()
    with pytest.raises(kind, match=said):
        checks.build(context, found, 200)
    assert not context.built and found.details["output"]


def test_a_build_without_cuda_kernels_is_a_failure(tmp_path: Path) -> None:
    facts = {**INFO, "cuda_kernels": None, "no_cuda_reason": "no nvcc"}
    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: Answer([facts]), built=False)
    with pytest.raises(Failed, match="no CUDA kernels: no nvcc"):
        checks.build(context, result(), 200)


@pytest.mark.parametrize("section", [checks.sanitize, lambda *a: checks.tests(*a, files=[])])
def test_without_a_build_nothing_else_is_tried(tmp_path: Path, section) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, builder, built=False)
    with pytest.raises(Blocked):
        section(context, result(), 100)
    assert not run.calls


# ---------------------------------------------------------------------------------------------------------------- tests


def events(*names: str, outcome: str = "passed", said: str = "") -> list[dict]:
    lines = []
    for name in names:
        lines += [{"begun": name}, {"test": name, "outcome": outcome, "said": said}]
    return lines


def run_tests(tmp_path: Path, answer, limit: float = 400, **changes):
    context, run, _ = acceptance_fakes.context(tmp_path, answer, **changes)
    found = result()
    return context, run, found, lambda **kw: checks.tests(context, found, limit, files=["test_a.py"], **kw)


def test_tests_run_for_each_algorithm_in_a_process_of_its_own(tmp_path: Path) -> None:
    _, run, found, go = run_tests(tmp_path, lambda call: Answer([{"tests": 2}, *events("a", "b")], 10))
    go(by_algorithm=True)
    keywords = [call.command[call.command.index("-k") + 1] for call in run.calls]
    assert keywords == ["cuda-step", "cuda-block", "cuda-grid", "not cuda-step and not cuda-block and not cuda-grid"]
    assert [round(call.limit) for call in run.calls] == [100, 130, 190, 370]
    assert found.said == "8 passed, 0 failed, 0 skipped"
    assert found.details["grid"] == {"tests": 2, "passed": 2, "failed": [], "skipped": {}}
    assert run.calls[0].command[-1] == str(tmp_path / "tree" / "tests" / "cuda" / "test_a.py")


def test_one_algorithm_alone(tmp_path: Path) -> None:
    _, run, _, go = run_tests(tmp_path, lambda call: Answer([{"tests": 1}, *events("a")]), algorithm="grid")
    go(by_algorithm=True)
    go()
    assert [call.command[call.command.index("-k") + 1] for call in run.calls] == ["cuda-grid"] * 2


def test_failed_and_skipped_tests_are_told(tmp_path: Path) -> None:
    lines = [{"tests": 3}, *events("a"), *events("b", outcome="failed", said="off by 2"),
             *events("c", outcome="skipped", said="two devices")]  # fmt: skip
    _, _, found, go = run_tests(tmp_path, lambda call: Answer(lines, returncode=1))
    with pytest.raises(Failed, match="1 passed, 1 failed, 1 skipped"):
        go()
    assert found.details["all"]["failed"] == [{"test": "b", "said": "off by 2"}]
    assert found.details["all"]["skipped"] == {"two devices": 1}


def test_nothing_but_skips_is_a_failure(tmp_path: Path) -> None:
    lines = [{"tests": 1}, *events("a", outcome="skipped", said="needs a CUDA device")]
    _, _, _, go = run_tests(tmp_path, lambda call: Answer(lines))
    with pytest.raises(Failed, match="0 passed, 0 failed, 1 skipped: nothing passed in all"):
        go()


def test_an_algorithm_without_the_type_of_all_tests_is_no_failure(tmp_path: Path) -> None:
    """Derivatives are compared in float64, which block does not run."""
    lines = [{"tests": 1}, *events("a", outcome="skipped", said="the algorithm block does not run float64")]
    _, _, _, go = run_tests(tmp_path, lambda call: Answer(lines), algorithm="block")
    with pytest.raises(Skipped, match="the algorithm block does not run float64"):
        go()


def test_an_algorithm_in_which_nothing_ran_is_not_hidden_by_the_others(tmp_path: Path) -> None:
    def answer(call: Call) -> Answer:
        return (
            Answer([{"tests": 0}], returncode=5)
            if "cuda-grid" in call.command
            else Answer([{"tests": 1}, *events("a")])
        )

    _, _, _, go = run_tests(tmp_path, answer)
    with pytest.raises(Failed, match="3 passed, 0 failed, 0 skipped: nothing passed in grid"):
        go(by_algorithm=True)


@pytest.mark.parametrize(
    "end", [{"returncode": -11}, {"stopped": "stopped after 60 s without a word"}], ids=["crash", "hang"]
)
def test_a_test_that_crashes_or_hangs_fails_and_those_after_it_run_in_a_new_process(tmp_path: Path, end: dict) -> None:
    answers = [
        Answer([{"tests": 3}, *events("a"), {"begun": "b"}], **end),
        Answer([{"tests": 1}, *events("c")]),
    ]
    skipped = []

    def answer(call: Call) -> Answer:
        skipped.append(Path(call.env[checks.DONE]).read_text().split())
        return answers[len(skipped) - 1]

    _, _, found, go = run_tests(tmp_path, answer)
    with pytest.raises(Failed, match="2 passed, 1 failed"):
        go()
    assert skipped == [[], ["a", "b"]]
    said = "the process ended with -11" if "returncode" in end else end["stopped"]
    assert found.details["all"]["failed"] == [{"test": "b", "said": said}]


def test_an_overrun_names_the_test_it_was_in_and_leaves_the_other_algorithms_their_time(tmp_path: Path) -> None:
    def answer(call: Call) -> Answer:
        if "cuda-block" in call.command:
            return Answer([{"tests": 2}, *events("a"), {"begun": "b"}, "..."], seconds=10_000)
        return Answer([{"tests": 1}, *events("a")], seconds=5)

    _, run, found, go = run_tests(tmp_path, answer)
    with pytest.raises(Overran, match=r"block: stopped after 132 s, in"):
        go(by_algorithm=True)
    assert len(run.calls) == 4 and found.details["chosen"]["passed"] == 1


def test_pytest_that_does_not_start_says_why(tmp_path: Path) -> None:
    _, _, _, go = run_tests(tmp_path, lambda call: Answer(["ImportError: no"], returncode=4))
    with pytest.raises(Failed, match="pytest did not start: ImportError: no"):
        go()
    machine = replace(MACHINE, packages={"pytest": None})
    _, run, _, go = run_tests(tmp_path, lambda call: Answer(), machine=machine)
    with pytest.raises(Failed, match="pytest is missing"):
        go()
    assert not run.calls


def test_a_process_that_crashes_over_and_over_is_given_up(tmp_path: Path) -> None:
    numbers = iter(range(100))
    _, run, _, go = run_tests(
        tmp_path, lambda call: Answer([{"tests": 99}, {"begun": f"t{next(numbers)}"}], returncode=-6)
    )
    with pytest.raises(Failed, match="given up after 5 processes"):
        go()
    assert len(run.calls) == 5


# ------------------------------------------------------------------------------------------------------------ sanitizer

RAN = {"case": "grid lstm float16 H=33", "outcome": "ran"}
REFUSED = {"case": "block lstm float64 H=33", "outcome": "refused"}


def test_every_tool_of_the_sanitizer_runs(tmp_path: Path) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, lambda call: Answer([RAN, REFUSED]))
    found = result()
    checks.sanitize(context, found, 90)
    assert [call.command[:3] for call in run.calls] == [[MACHINE.sanitizer, "--tool", tool] for tool in SANITIZERS]
    assert run.calls[0].request["algorithms"] == ["step", "block", "grid"]
    assert run.calls[0].limit == 30
    assert found.details["racecheck"]["cases"] == [RAN, REFUSED]


def test_without_a_sanitizer_the_section_is_skipped_with_the_reason(tmp_path: Path) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, lambda c: Answer(), machine=replace(MACHINE, sanitizer=None))
    with pytest.raises(Skipped, match="no compute-sanitizer on PATH"):
        checks.sanitize(context, result(), 90)
    assert not run.calls


def test_a_device_that_the_sanitizer_refuses_is_no_failure(tmp_path: Path) -> None:
    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: Answer(["Device not supported"], returncode=1))
    with pytest.raises(Skipped, match="Device not supported"):
        checks.sanitize(context, result(), 90)


def test_a_tool_that_fails_by_itself_is_named_and_no_failure(tmp_path: Path) -> None:
    broken = Answer([RAN, RAN, "========= Internal Sanitizer Error: hardware exception"], returncode=255)
    context, _, _ = acceptance_fakes.context(
        tmp_path, lambda call: broken if "racecheck" in call.command else Answer([RAN])
    )
    found = result()
    checks.sanitize(context, found, 90)
    assert found.said.endswith("no errors; racecheck failed by itself after 2 cases")
    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: Answer(broken.lines[2:], returncode=255))
    with pytest.raises(Failed, match="memcheck ended with 255"):
        checks.sanitize(context, result(), 90)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (
            Answer([RAN, "========= Invalid read"], returncode=86),
            Failed,
            "memcheck found errors; racecheck found errors",
        ),
        (Answer([RAN], returncode=1), Failed, "memcheck ended with 1"),
        (Answer([REFUSED]), Failed, "memcheck saw no kernel"),
        (Answer([RAN, RAN], seconds=1000), Overran, "memcheck was stopped after 30 s"),
    ],
)
def test_what_the_sanitizer_finds(tmp_path: Path, answer: Answer, kind: type[Exception], said: str) -> None:
    context, run, _ = acceptance_fakes.context(tmp_path, lambda call: answer)
    with pytest.raises(kind, match=said):
        checks.sanitize(context, result(), 90)
    assert len(run.calls) == 3  # no tool keeps the next from running
