"""Real processes: that they are stopped, and what workers and pytest really say, on the CPU."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from acceptance import checks, processes, report, timings
from acceptance.checks import Outcomes, json_line
from acceptance.command import main
from acceptance.plan import Shape
from acceptance.processes import Finished
from acceptance.sections import Context, Failed, Overran, Result, Section
from acceptance_fakes import MACHINE, PROBED

import fusedrnn

TREE = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def test_lines_come_as_they_are_said_and_the_last_ones_are_kept() -> None:
    seen = []
    done = processes.run(
        python("import sys; [print(i) for i in range(100)]; print('oops', file=sys.stderr); sys.exit(3)"),
        limit=30,
        on_line=lambda line: seen.append(line.strip()),
    )
    assert done.returncode == 3 and done.stopped is None
    assert seen == [*map(str, range(100)), "oops"]
    assert done.output.split() == seen[-processes.KEPT_LINES :]


def test_environment_and_folder_are_as_asked(tmp_path: Path) -> None:
    code = "import os; print(os.environ['HERE'], os.getcwd(), bool(os.environ['PATH']))"
    done = processes.run(python(code), limit=30, env={"HERE": "there"}, cwd=tmp_path)
    assert done.output.split() == ["there", str(tmp_path), "True"]


def test_a_process_is_stopped_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; print('begun'); subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    done = processes.run(python(code), limit=4)
    assert done.returncode is None and done.stopped == "stopped after 4 s" and done.output == "begun\n"
    assert time.monotonic() - start < 20
    for _ in range(100):
        try:
            os.kill(int((tmp_path / "pid").read_text()), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        if state.exists() and state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")


def test_a_process_that_ignores_the_request_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE", 0.3)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    start = time.monotonic()
    assert processes.run(python(code), limit=2).output == "deaf\n"
    assert time.monotonic() - start < 20


def test_a_process_that_says_nothing_is_stopped_before_its_limit() -> None:
    done = processes.run(python("import time; print('last'); time.sleep(60)"), limit=50, silence=3)
    assert done.stopped == "stopped after 3 s without a word" and done.seconds < 30


def test_a_command_that_is_not_there_ends_with_127() -> None:
    done = processes.run(["/no/such/program"], limit=5)
    assert done.returncode == 127 and "No such file" in done.output


# ------------------------------------------------------------------------------------------------------- real workers


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    # The package that this process tests is the one that workers import.
    monkeypatch.setenv("PYTHONPATH", str(Path(fusedrnn.__file__).parents[1]))
    return Context(machine=MACHINE, tree=TREE, out=tmp_path, run=processes.run, device="cpu", built=True)


def test_a_real_benchmark_on_the_cpu(context: Context) -> None:
    shapes = [Shape("lstm", "float32", 2, 3, 4), Shape("gru", "tf32", 1, 2, 3), Shape("rnn_tanh", "bfloat16", 2, 2, 5)]
    result = Result("benchmark", "")
    timings.measure(context, result, 100, "benchmark", shapes, {"algorithm": None, "each": 0.01})
    assert [Shape(**row["shape"]) for row in result.details["rows"]] == shapes
    for row in result.details["rows"]:
        assert row["difference"] < 0.1 and not row["wrong"] and row["algorithms"] is None
        for task in ("forward", "training"):
            times = row[task]
            assert times["ratio"] == pytest.approx(times["nn_us"] / times["fused_us"]) and times["rounds"] >= 5


def test_real_times_of_the_algorithms_on_the_cpu(context: Context) -> None:
    result = Result("algorithms", "")
    shapes = [Shape("gru", "float32", 2, 3, 4)]
    timings.measure(context, result, 100, "algorithms", shapes, {"algorithms": [None, "step"], "each": 0.01})
    (row,) = result.details["rows"]
    assert {*row["algorithms"]} == {"chosen", "step"}
    assert all(times["forward"] > 0 and times["training"] > 0 for times in row["algorithms"].values())


def test_a_shape_that_raises_is_a_row_with_an_error(context: Context) -> None:
    result = Result("benchmark", "")
    shapes = [Shape("gru", "float32", 2, 0, 4), Shape("gru", "float32", 2, 1, 4)]
    with pytest.raises(Failed, match="2 of 2 shapes; 1 failed"):
        timings.measure(context, result, 100, "benchmark", shapes, {"algorithm": None, "each": 0.01})
    assert "sequence length to be larger than 0" in result.details["rows"][0]["error"].lower()


def test_the_small_cases_of_the_sanitizer_run(context: Context) -> None:
    request = json.dumps({"device": "cpu", "algorithms": ["step"]})
    command = [sys.executable, "-m", "acceptance.worker", "kernels", request]
    done = processes.run(command, limit=100, cwd=context.out, env=context.environment())
    cases = [facts for line in done.output.splitlines() if (facts := json_line(line))]
    assert done.returncode == 0 and len(cases) == 48 and {case["outcome"] for case in cases} == {"ran"}


def test_the_command_with_real_timings_on_the_cpu(context: Context, tmp_path: Path) -> None:
    """All is real but the GPU, and the build that is asked for its kernels."""

    def run(command, **options):
        if "probe.py" in command[-1]:
            return Finished(0, json.dumps(PROBED), 0.0)
        if command[-1] == "info":
            return Finished(0, json.dumps({"cuda_kernels": "13.0", "no_cuda_reason": None, "path": "here"}), 0.0)
        return processes.run(command, **options)

    shapes = [Shape("lstm", "float32", 2, 3, 4)] * 3
    small = {"each": 0.01, "algorithm": None, "algorithms": [None, "step"]}
    sections = [
        Section("build", "the build", 1, checks.build),
        *(
            Section(name, name, 1, lambda c, r, limit: timings.measure(c, r, limit, r.section, shapes, small))
            for name in ("algorithms", "benchmark")
        ),
    ]
    arguments = ["--no-build", "--out", str(tmp_path / "out"), "--minutes", "1"]
    assert main(arguments, run=run, sections=sections, device="cpu") == 0
    content = json.loads((tmp_path / "out" / report.JSON).read_text())
    assert [(s["status"], s["said"]) for s in content["sections"][1:]] == [("passed", "3 of 3 shapes")] * 2
    assert (tmp_path / "out" / report.MARKDOWN).read_text().count("| lstm | float32 | 2 | 3 | 4 |") == 6


# -------------------------------------------------------------------------------------------------------- real pytest

TESTS = """
import os, time
import pytest
pytestmark = pytest.mark.cuda

def test_passes(): pass
def test_fails(): assert 1 == 2, "not equal"
@pytest.mark.skip(reason="two devices")
def test_skipped(): pass
def test_crashes(): os._exit(9)
def test_loses_the_gpu(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_comes_after(): pass
"""


@pytest.fixture
def made_up(context: Context, tmp_path: Path) -> Context:
    """A tree whose tests do all that tests can do."""
    tree = tmp_path / "made_up"
    (tree / "tests" / "cuda").mkdir(parents=True)
    (tree / "benchmarks").symlink_to(TREE / "benchmarks")
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["cuda: needs a CUDA device"]\n')
    (tree / "tests" / "cuda" / "test_it.py").write_text(TESTS)
    context.tree = tree
    return context


def test_real_tests_that_crash_and_lose_the_gpu_do_not_stop_the_rest(made_up: Context) -> None:
    outcomes = Outcomes()
    checks.run_tests(made_up, outcomes, ["test_it.py"], "", 100)
    names = {failure["test"].split("::")[1]: failure["said"] for failure in outcomes.failed}
    assert outcomes.tests == 6 and outcomes.passed == 2 and dict(outcomes.skipped) == {"two devices": 1}
    assert {*names} == {"test_fails", "test_crashes", "test_loses_the_gpu"}
    assert "not equal" in names["test_fails"] and names["test_crashes"] == "the process ended with 9"


def test_real_tests_are_chosen_by_keyword_and_stopped_at_the_limit(made_up: Context) -> None:
    outcomes = Outcomes()
    checks.run_tests(made_up, outcomes, ["test_it.py"], "after or passes", 60)
    assert (outcomes.tests, outcomes.passed, outcomes.failed) == (2, 2, [])
    path = made_up.tree / "tests" / "cuda" / "test_it.py"
    path.write_text(TESTS.replace("def test_fails(): ", "def test_sleeps(): time.sleep(60)\ndef test_fails(): "))
    outcomes = Outcomes()
    with pytest.raises(Overran, match=r"stopped after 8 s, in .*::test_sleeps"):
        checks.run_tests(made_up, outcomes, ["test_it.py"], "", 8)
    assert outcomes.passed == 1
