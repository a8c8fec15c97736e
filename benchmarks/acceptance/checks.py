"""The sections that pass or fail: the build, the tests, compute-sanitizer."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .outcomes import DONE
from .plan import ALGORITHMS
from .processes import last_line
from .sections import Context, Failed, Overran, Result, Skipped

_RESTARTS = 4
_SILENCE = 20.0, 90.0  # seconds that no test takes: half of the limit between these, since compiling one takes long
_IMPORT_SECONDS = 90.0


def json_line(line: str) -> dict[str, Any] | None:
    """What a process said in JSON, or None of another line."""
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------------------------- build


def build(context: Context, result: Result, limit: float) -> None:
    """Builds for this GPU alone into a folder of its own, without pip or a network, and asks the build what it is."""
    start = context.clock()
    if context.build:
        if missing := context.machine.missing("setuptools", "ninja"):
            raise Failed(
                f"cannot build: {' and '.join(missing)} missing from this Python (pip install {' '.join(missing)})"
            )
        if context.machine.nvcc is None:
            raise Failed("cannot build: no nvcc was found; install the CUDA toolkit, or set CUDA_HOME to it")
        if context.machine.compiler is None:
            raise Failed("cannot build: no C++ compiler was found; install g++, or set CXX")
        command = [sys.executable, "setup.py", "build", "--build-lib", str(context.library)]
        env = {"FUSEDRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": context.machine.capability}
        done = context.run(command, limit=limit, cwd=context.tree, env=env)
        result.details.update(command=command, environment=env, output=done.output)
        if done.stopped:
            raise Overran(done.stopped)
        if done.returncode != 0:
            raise Failed(f"setup.py failed: {last_line(done.output)}")
    _ask(context, result, max(10.0, min(_IMPORT_SECONDS, limit - (context.clock() - start))))
    context.built = True


def _ask(context: Context, result: Result, limit: float) -> None:
    asked = context.run(
        [sys.executable, "-m", "acceptance.worker", "info"], limit=limit, cwd=context.out, env=context.environment()
    )
    facts = next((f for line in asked.output.splitlines() if (f := json_line(line))), None)
    if facts is None or asked.returncode != 0:
        raise Failed(f"fusedrnn cannot be imported: {last_line(asked.output) or asked.stopped}")
    result.details["info"] = facts
    if not facts["cuda_kernels"]:
        raise Failed(f"fusedrnn has no CUDA kernels: {facts['no_cuda_reason']}")
    result.said = f"CUDA {facts['cuda_kernels']}, from {facts['path']}"


# ---------------------------------------------------------------------------------------------------------------- tests


@dataclass
class Outcomes:
    """What came of the tests of one part of a section."""

    passed: int = 0
    tests: int | None = None  # that were collected
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    done: list[str] = field(default_factory=list)
    begun: str | None = None  # and has not ended

    def take(self, facts: dict[str, Any]) -> None:
        if "tests" in facts and self.tests is None:
            self.tests = facts["tests"]
        elif "begun" in facts:
            self.begun = facts["begun"]
        elif "test" in facts:
            if self.begun == facts["test"]:
                self.begun = None
            self.done.append(facts["test"])
            if facts["outcome"] == "passed":
                self.passed += 1
            elif facts["outcome"] == "failed":
                self.failed.append({"test": facts["test"], "said": facts["said"]})
            else:
                self.skipped[facts["said"]] += 1

    def details(self) -> dict[str, Any]:
        return {"tests": self.tests, "passed": self.passed, "failed": self.failed, "skipped": dict(self.skipped)}


def run_tests(context: Context, outcomes: Outcomes, files: list[str], keyword: str, limit: float) -> None:
    """Runs tests marked `cuda`. One that hangs, crashes or loses the GPU fails; those after it run in a new process."""
    end = context.clock() + limit
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(context.tree / "pyproject.toml"),
        "--rootdir",
        str(context.tree),
    ]
    options = ["-m", "cuda", "-p", "acceptance.outcomes", "-p", "no:cacheprovider", "-q", "--tb=short"]
    paths = [str(context.tree / "tests" / "cuda" / name) for name in files]
    skip = context.out / "tests-done.txt"
    for _ in range(_RESTARTS + 1):
        skip.write_text("\n".join(outcomes.done), encoding="utf-8")
        finished = context.run(
            [*pytest, *options, *(["-k", keyword] if keyword else []), *paths],
            limit=max(1.0, end - context.clock()),
            silence=min(max(_SILENCE[0], limit / 2), _SILENCE[1]),
            cwd=context.out,
            env={**context.environment(), DONE: str(skip)},
            on_line=lambda line: outcomes.take(facts) if (facts := json_line(line)) else None,
        )
        timed_out = finished.stopped and context.clock() >= end - 0.5
        if timed_out:
            raise Overran(f"{finished.stopped}, in {outcomes.begun or 'no test'}")
        if outcomes.tests is None or finished.returncode in (3, 4):
            raise Failed(f"pytest did not start: {last_line(finished.output) or finished.stopped}")
        if outcomes.begun is None and finished.returncode in (0, 1, 5):
            return
        if outcomes.begun is not None:
            why = finished.stopped or f"the process ended with {finished.returncode}"
            outcomes.take({"test": outcomes.begun, "outcome": "failed", "said": why})
        if len(set(outcomes.done)) >= outcomes.tests:
            return  # it crashed in the last one
    raise Failed(f"given up after {_RESTARTS + 1} processes")


def _summary(parts: dict[str, Outcomes]) -> str:
    """One sentence; raises where it is not one of success."""
    passed = sum(part.passed for part in parts.values())
    failed = sum(len(part.failed) for part in parts.values())
    skipped = sum(sum(part.skipped.values()) for part in parts.values())
    said = f"{passed} passed, {failed} failed, {skipped} skipped"
    if failed:
        raise Failed(said)
    for name, part in parts.items():
        if not part.passed and not (part.skipped and all("the algorithm" in reason for reason in part.skipped)):
            raise Failed(f"{said}: nothing passed in {name}")
    if not passed:
        raise Skipped(f"{said}: {next(iter(next(iter(parts.values())).skipped))}")
    return said


def tests(context: Context, result: Result, limit: float, files: list[str], by_algorithm: bool = False) -> None:
    """A section of tests; by algorithm, one that crashes or hangs takes no time from the others."""
    context.need_library()
    if context.machine.missing("pytest"):
        raise Failed("pytest is missing from this Python (pip install pytest)")
    forced = [context.algorithm] if context.algorithm else list(ALGORITHMS)
    keywords = {name: f"cuda-{name}" for name in forced}
    if not by_algorithm:
        keywords = {"all": " or ".join(keywords.values()) if context.algorithm else ""}
    elif not context.algorithm:
        keywords["chosen"] = " and ".join(f"not cuda-{name}" for name in forced)
    end = context.clock() + limit
    parts: dict[str, Outcomes] = {}
    problems = []
    for number, (name, keyword) in enumerate(keywords.items()):
        part = parts[name] = Outcomes()
        part_limit = (end - context.clock()) / (len(keywords) - number)
        try:
            run_tests(context, part, files, keyword, part_limit)
        except (Failed, Overran) as error:
            problems.append((type(error), f"{name}: {error}" if by_algorithm else str(error)))
        result.details[name] = part.details()
        context.save()
    if problems:
        kind = Failed if any(p.failed for p in parts.values()) or problems[0][0] is Failed else Overran
        raise kind("; ".join(said for _, said in problems))
    result.said = _summary(parts)


# ------------------------------------------------------------------------------------------------------------ sanitizer

SANITIZERS = (
    "memcheck",
    "racecheck",
    "synccheck",
)  # the emulator checks initialisation, which torch's own memory blurs
_ERRORS = 86  # the exit status that stands for errors found
_UNSUPPORTED = "Device not supported"
# racecheck of CUDA 13.0 falls over any product of halves by cuBLAS on an H100.
_OWN_ERROR = "Internal Sanitizer Error"


def sanitize(context: Context, result: Result, limit: float) -> None:
    """A small case of every kernel under each tool of compute-sanitizer."""
    context.need_library()
    sanitizer = context.machine.sanitizer
    if sanitizer is None:
        raise Skipped("no compute-sanitizer on PATH or in CUDA_HOME")
    end = context.clock() + limit
    problems: list[str] = []
    notes: list[str] = []
    for number, tool in enumerate(SANITIZERS):
        cases: list[dict[str, Any]] = []
        arguments = ["--tool", tool, "--error-exitcode", str(_ERRORS), "--kernel-name", "kernel_substring=fusedrnn"]
        finished = context.run(
            [sanitizer, *arguments, sys.executable, "-m", "acceptance.worker", "kernels", _request(context)],
            limit=(end - context.clock()) / (len(SANITIZERS) - number),
            cwd=context.out,
            # Without torch's cache each tensor is an allocation of its own, whose end is known.
            env={**context.environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            on_line=lambda line, cases=cases: cases.append(facts) if (facts := json_line(line)) else None,  # type: ignore[misc]
        )
        ran = sum(case["outcome"] == "ran" for case in cases)
        result.details[tool] = {"cases": cases, "output": finished.output}
        context.save()
        if _UNSUPPORTED in finished.output:
            raise Skipped(f"compute-sanitizer says: {_UNSUPPORTED}")
        if _OWN_ERROR in finished.output and ran:
            notes.append(f"; {tool} failed by itself after {ran} cases")
        elif finished.stopped:
            problems.append(f"{tool} was {finished.stopped}, {ran} cases after its start")
        elif finished.returncode == _ERRORS:
            problems.append(f"{tool} found errors")
        elif finished.returncode != 0:
            problems.append(f"{tool} ended with {finished.returncode}: {last_line(finished.output)}")
        elif not ran:
            problems.append(f"{tool} saw no kernel")
    if problems:
        only_time = all(" was stopped after" in problem for problem in problems)
        raise (Overran if only_time else Failed)("; ".join(problems))
    result.said = f"{', '.join(SANITIZERS)}: no errors{''.join(notes)}"


def _request(context: Context) -> str:
    algorithms = [context.algorithm] if context.algorithm else list(ALGORITHMS)
    return json.dumps({"device": context.device, "algorithms": algorithms})
