"""The command as a whole: options, what it finds on a machine, exit status, the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from acceptance import machine, report
from acceptance.command import SECTIONS, main
from acceptance.plan import Shape
from acceptance_fakes import PROBED, Answer, Call, Clock, FakeRun

TREE = Path(__file__).parents[2]
TIMES = {"nn_us": 1.96, "fused_us": 0.98, "ratio": 2.0, "spread": 0.01, "repeat": 0.0, "rounds": 9, "noise": None}


def healthy(call: Call) -> Answer:
    """A machine where all is well."""
    words = " ".join(call.command)
    if "probe.py" in words:
        return Answer([PROBED])
    if "nvidia-smi" in words:
        return Answer(["580.159"])
    if "--version" in words:
        return Answer(["Cuda compilation tools, release 13.0, V13.0.48"])
    if "--dryrun" in words:
        return Answer(["#$ _SPACE_= ", "#$ TOP=/opt/toolkit-13", "#$ LIBRARIES="])
    if "setup.py" in words:
        return Answer(["ok"], 60)
    if words.endswith("info"):
        return Answer([{"cuda_kernels": "13.0", "no_cuda_reason": None, "path": "/out/lib/fusedrnn"}])
    if "pytest" in call.command:
        return Answer([{"tests": 1}, {"begun": "t"}, {"test": "t", "outcome": "passed", "said": ""}], 3)
    if "kernels" in words:
        return Answer([{"case": "step", "outcome": "ran"}], 4)
    shapes = [Shape(*values) for values in call.request["shapes"][:3]]
    if "algorithms" in call.request:
        step, grid = ({"forward": 3.0, "training": 5.0}, {"forward": 1.5, "training": 6.0})
        found = {
            "algorithms": {
                "chosen": step,
                "step": step,
                "block": {"refused": "the algorithm block does not"},
                "grid": grid,
            }
        }
    else:
        found = {"difference": 1e-3, "wrong": False, "algorithms": "forward grid, backward grid", "forward": TIMES,
                 "training": {**TIMES, "noise": "runs spread"}}  # fmt: skip
    rows = [{"row": {"shape": shape._asdict(), **found}} for shape in shapes]
    return Answer([line for row in rows for line in ({"begun": "x"}, row)], 10)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit of empty programs."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    for name in ("nvcc", "compute-sanitizer", "g++"):
        (home / "bin" / name).write_text("")
        (home / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    return home


def invoke(out: Path, *arguments: str, answer=healthy) -> tuple[int, FakeRun, dict, str]:
    clock = Clock()
    run = FakeRun(clock, answer)
    status = main(["--out", str(out), *arguments], run=run, clock=clock)
    return status, run, json.loads((out / report.JSON).read_text()), (out / report.MARKDOWN).read_text()


def test_all_sections_in_their_order(tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, content, text = invoke(tmp_path)
    assert status == 0
    names = ["build", "tests", "gradcheck", "determinism", "sanitizer", "graphs", "algorithms", "benchmark"]
    assert [(s["section"], s["status"]) for s in content["sections"]] == [(name, "passed") for name in names]
    said = capsys.readouterr().out
    assert said.index("NVIDIA Made-up, capability 9.0") < said.index("build: ")
    for fact in (
        "NVIDIA Made-up",
        "580.159",
        "2.13.0+cu130",
        "nvcc 13.0 in /opt/toolkit-13",
        str(tools / "bin" / "compute-sanitizer"),
    ):
        assert fact in said and fact in text


def test_the_tables_of_the_report(tmp_path: Path, tools: Path) -> None:
    _, _, content, text = invoke(tmp_path)
    assert "| lstm | float16 | 16 | 1024 | 768 | 1.96 | 0.98 | 2.00 | 1.96 | 0.98 | ~2.00 | forward grid, backward grid | 1.0e-03 |" in text  # noqa: E501  # fmt: skip
    assert "| lstm | float16 | 16 | 256 | 128 | 3.00 / **5.00** | 3.00 / **5.00** | - | **1.50** / 6.00 |" in text
    benchmark = content["sections"][-1]["details"]
    assert len(benchmark["rows"]) == 3 and f"Not reached: {len(benchmark['not_reached'])} shapes" in text
    assert "- step: 1 passed, 0 failed, 0 skipped" in text and "- memcheck: 1 cases ran, 0 were refused" in text


def test_eight_minutes_are_all_that_is_taken(tmp_path: Path, tools: Path) -> None:
    """Whatever hangs: only the benchmark, whose end is the end of the time, gets to its limit without a failure."""

    def hangs(call: Call) -> Answer:
        answer = healthy(call)
        known = any(word in " ".join(call.command) for word in ("probe", "smi", "--version", "--dryrun", "info"))
        return answer if known else Answer(["..."], 10_000)

    status, run, content, _ = invoke(tmp_path, answer=hangs)
    assert status == 1 and run.clock.now - 100 <= 8 * 60 + 1
    assert [s["status"] for s in content["sections"]] == ["overran", *["not reached"] * 7]
    assert content["sections"][1]["said"] == "there is no build to look at"

    def hangs_later(call: Call) -> Answer:
        return healthy(call) if "setup.py" in call.command else hangs(call)

    status, run, content, _ = invoke(tmp_path, "--minutes", "4", answer=hangs_later)
    assert status == 1 and run.clock.now - 100 <= 4 * 60 + 1
    assert {s["status"] for s in content["sections"][1:]} == {"overran", "failed"}
    assert min(s["limit"] for s in content["sections"]) > 5


def test_a_failing_section_makes_the_status_1_and_is_shown(tmp_path: Path, tools: Path) -> None:
    def answer(call: Call) -> Answer:
        if "test_graphs.py" in call.command[-1]:
            return Answer([{"tests": 1}, {"begun": "t"}, {"test": "t", "outcome": "failed", "said": "a | b"}], 3, 1)
        return healthy(call)

    status, _, content, text = invoke(tmp_path, answer=answer)
    assert status == 1 and [s["section"] for s in content["sections"] if s["status"] == "failed"] == ["graphs"]
    assert "  - failed: `t`: a \\| b" in text and "| benchmark | passed |" in text


def test_the_build_s_own_words_are_shown_where_it_fails(tmp_path: Path, tools: Path) -> None:
    def answer(call: Call) -> Answer:
        return Answer(["grid.cuh(3): error"], 5, 1) if "setup.py" in call.command else healthy(call)

    status, _, _, text = invoke(tmp_path, answer=answer)
    assert status == 1 and "```\ngrid.cuh(3): error\n```" in text


def test_some_sections_alone_and_without_a_build(tmp_path: Path, tools: Path) -> None:
    status, run, content, _ = invoke(
        tmp_path, "--sections", "graphs,benchmark", "--algorithm", "grid", "--minutes", "2"
    )
    assert status == 0
    assert [s["section"] for s in content["sections"]] == ["build", "graphs", "benchmark"]
    assert not any("setup.py" in call.command for call in run.calls)
    assert run.calls[-1].request["algorithm"] == "grid" and run.calls[-1].limit < 120
    _, run, _, _ = invoke(tmp_path, "--no-build")
    assert not any("setup.py" in call.command for call in run.calls)


@pytest.mark.parametrize(
    ("probed", "said"),
    [
        ({"gpus": [], "torch_cuda": None}, "no GPU: torch 2.13.0+cu130 was built without CUDA."),
        ({"gpus": []}, "no GPU: torch 2.13.0+cu130 built with CUDA 13.0, sees none."),
        ({"packages": {"torch": None}}, f"PyTorch is missing: install it for {sys.executable}, built with CUDA."),
    ],
)
def test_without_a_gpu_it_says_so_in_a_sentence_and_leaves_with_2(
    tmp_path: Path, probed: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    run = FakeRun(clock, lambda call: Answer([{**PROBED, **probed}]))
    assert main(["--out", str(tmp_path / "out")], run=run, clock=clock) == 2
    assert capsys.readouterr().err == f"gpu_acceptance: {said}\n"
    assert not (tmp_path / "out").exists()


def test_a_torch_that_cannot_be_imported_is_told_apart() -> None:
    run = FakeRun(Clock(), lambda call: Answer(["ImportError: libcudart.so.13"], returncode=1))
    with pytest.raises(machine.Unfit, match=r"cannot be asked for its GPU: ImportError: libcudart.so.13"):
        machine.find(run)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sections", "build,speed"], "expected some of build,tests,"),
        (["--minutes", "0"], "expected more than 0 minutes"),
        (["--algorithm", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_a_bad_option_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2 and said in capsys.readouterr().err


def test_every_test_file_of_a_section_is_there_and_every_file_is_in_a_section() -> None:
    named = [name for section in SECTIONS for name in getattr(section.run, "keywords", {}).get("files", [])]
    assert sorted(named) == sorted(path.name for path in (TREE / "tests" / "cuda").glob("test_*.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_real_command_on_this_machine_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(TREE / "benchmarks" / "gpu_acceptance.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.startswith("gpu_acceptance: no GPU: torch ") and not done.stdout
    assert not list(tmp_path.iterdir())
