"""How the sections of benchmarks/gpu_acceptance.py share their time, and what is on disk at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import acceptance_fakes
import pytest
from acceptance import report
from acceptance.sections import Failed, Overran, Result, Section, Skipped, exit_status, run_sections
from acceptance_fakes import MACHINE, Answer


def sections_of(context, clock, **what):
    """Sections by name: seconds that they take, and what they raise."""

    def make(seconds, error):
        def run(context, result, limit):
            clock.now += seconds
            result.details["seen"] = True
            if error:
                raise error
            result.said = "well"

        return run

    made = [Section(name, name.title(), 1, make(*value)) for name, value in what.items()]
    return made, [Result(s.name, s.title) for s in made]


def run(tmp_path: Path, seconds: float, **what):
    context, _, clock = acceptance_fakes.context(tmp_path, lambda call: Answer())
    sections, results = sections_of(context, clock, **what)
    context.save = lambda: report.write(tmp_path, MACHINE, results, "command")
    run_sections(sections, context, results, seconds)
    return results


def test_each_has_its_share_and_what_is_left_goes_to_the_next(tmp_path: Path) -> None:
    results = run(tmp_path, 90, a=(10, None), b=(40, None), c=(1, None))
    assert [r.limit for r in results] == [30, 40, 40]
    assert [r.seconds for r in results] == [10, 40, 1]
    assert exit_status(results) == 0


def test_shares_are_weights(tmp_path: Path) -> None:
    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: Answer())
    limits = []
    sections = [Section(n, n, share, lambda c, r, limit: limits.append(limit)) for n, share in (("a", 3), ("b", 1))]
    run_sections(sections, context, [Result(s.name, s.title) for s in sections], 100)
    assert limits == [75, 100]


def test_a_failure_a_crash_and_an_overrun_stop_no_other_section(tmp_path: Path) -> None:
    errors = {
        "fails": Failed("two tests"),
        "crashes": ZeroDivisionError("by nought"),
        "overruns": Overran("stopped"),
        "skips": Skipped("no tool"),
        "passes": None,
    }
    results = run(tmp_path, 100, **{name: (1, error) for name, error in errors.items()})
    assert [r.status for r in results] == ["failed", "failed", "overran", "skipped", "passed"]
    assert [r.said for r in results] == [
        "two tests",
        "ZeroDivisionError: by nought",
        "stopped",
        "no tool",
        "well",
    ]
    assert "ZeroDivisionError" in results[1].details["traceback"]
    assert exit_status(results) == 1


@pytest.mark.parametrize("error", [None, Skipped("no tool")])
def test_a_section_that_is_skipped_is_no_failure(tmp_path: Path, error: Exception | None) -> None:
    assert exit_status(run(tmp_path, 10, a=(1, error))) == 0


def test_what_no_time_is_left_for_is_not_begun_and_makes_the_status_1(tmp_path: Path) -> None:
    results = run(tmp_path, 30, a=(29.5, None), b=(1, None))
    assert [r.status for r in results] == ["passed", "not reached"]
    assert results[1].said == "no time was left" and not results[1].details
    assert exit_status(results) == 1


def test_the_files_are_whole_at_every_moment_and_show_the_running_section(tmp_path: Path) -> None:
    seen = []

    def look(context, result, limit):
        content = json.loads((tmp_path / report.JSON).read_text())
        seen.append([s["status"] for s in content["sections"]])
        assert not list(tmp_path.glob(".*partial"))
        raise Failed("no") if len(seen) == 2 else Skipped("never mind")

    context, _, _ = acceptance_fakes.context(tmp_path, lambda call: Answer())
    sections = [Section(n, n, 1, look) for n in "abc"]
    results = [Result(s.name, s.title) for s in sections]
    context.save = lambda: report.write(tmp_path, MACHINE, results, "command")
    run_sections(sections, context, results, 60)
    assert seen == [
        ["running", "not reached", "not reached"],
        ["skipped", "running", "not reached"],
        ["skipped", "failed", "running"],
    ]
    assert [s["status"] for s in json.loads((tmp_path / report.JSON).read_text())["sections"]] == [
        "skipped",
        "failed",
        "skipped",
    ]


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 60, a=(1, None), b=(5, KeyboardInterrupt()), c=(1, None))
    content = json.loads((tmp_path / report.JSON).read_text())
    assert [(s["status"], s["seconds"]) for s in content["sections"]] == [
        ("passed", 1.0),
        ("interrupted", 5.0),
        ("not reached", 0.0),
    ]
    assert content["sections"][1]["details"] == {"seen": True}
    assert "| b | interrupted | 5 |" in (tmp_path / report.MARKDOWN).read_text()


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(tmp_path, MACHINE, [], "first")
    result = Result("a", "A", details={"cannot": object()})  # which JSON cannot hold
    with pytest.raises(TypeError):
        report.write(tmp_path, MACHINE, [result], "second")
    assert json.loads((tmp_path / report.JSON).read_text())["command"] == "first"
