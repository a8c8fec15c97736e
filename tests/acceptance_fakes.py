"""A machine with a GPU that is made up: a clock that commands move, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acceptance.machine import Machine
from acceptance.processes import Finished
from acceptance.sections import Context

MACHINE = Machine(
    gpu="NVIDIA Made-up",
    capability="9.0",
    gpus=1,
    multiprocessors=132,
    gib=80.0,
    driver="580.1",
    torch="2.13.0",
    torch_cuda="13.0",
    cudnn=91000,
    nvcc="13.0",
    cuda_home="/cuda",
    sanitizer="/cuda/bin/compute-sanitizer",
    compiler="/usr/bin/g++",
    python="3.12.3",
    platform="Linux",
    processors=16,
    packages={"numpy": "2.4", "setuptools": "84.0", "ninja": "1.13", "pytest": "9.2"},
)

# What acceptance/probe.py says on that machine.
PROBED = {
    "python": "3.12.3",
    "platform": "Linux",
    "packages": {"torch": "2.13.0+cu130", "numpy": "2.4", "setuptools": "84.0", "ninja": "1.13", "pytest": "9.2"},
    "torch_cuda": "13.0",
    "cudnn": 91000,
    "gpus": [{"name": "NVIDIA Made-up", "capability": "9.0", "multiprocessors": 132, "gib": 79.2}],
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """What a command does: says lines, some seconds apart, and ends."""

    lines: Iterable[Any] = ()  # what is not text is said in JSON
    seconds: float = 1.0
    returncode: int = 0
    stopped: str | None = None  # other than by its limit


@dataclass
class Call:
    command: list[str]
    limit: float
    env: dict[str, str]
    cwd: Path | None

    @property
    def request(self) -> dict[str, Any]:
        return json.loads(self.command[-1])


@dataclass
class FakeRun:
    """A runner whose answers a function gives."""

    clock: Clock
    answer: Callable[[Call], Answer]
    calls: list[Call] = field(default_factory=list)

    def __call__(
        self,
        command: Sequence[str],
        *,
        limit: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        silence: float | None = None,
    ) -> Finished:
        call = Call(list(command), limit, dict(env or {}), cwd)
        self.calls.append(call)
        answer = self.answer(call)
        lines = [line if isinstance(line, str) else json.dumps(line) for line in answer.lines]
        start, each = self.clock.now, answer.seconds / max(1, len(lines))
        for line in lines:
            if self.clock.now + each > start + limit:
                break
            self.clock.now += each
            if on_line:
                on_line(line + "\n")
        output = "\n".join(lines)
        if answer.seconds > limit:
            self.clock.now = start + limit
            return Finished(None, output, limit, f"stopped after {limit:.0f} s")
        self.clock.now = start + answer.seconds
        return Finished(None if answer.stopped else answer.returncode, output, answer.seconds, answer.stopped)


def context(tmp_path: Path, answer: Callable[[Call], Answer], **changes: Any) -> tuple[Context, FakeRun, Clock]:
    clock = Clock()
    run = FakeRun(clock, answer)
    said: list[str] = []
    values = {"machine": MACHINE, "tree": tmp_path / "tree", "out": tmp_path, "run": run, "clock": clock}
    return Context(**{**values, "say": said.append, "built": True, **changes}), run, clock
