"""Sections that share a budget of time: each has a limit, each leaves its result on disk, none can stop the others."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .machine import Machine
from .processes import Runner

NOT_REACHED, RUNNING, PASSED, FAILED, OVERRAN, SKIPPED, INTERRUPTED = (
    "not reached",
    "running",
    "passed",
    "failed",
    "overran",
    "skipped",
    "interrupted",
)
GOOD = (PASSED, SKIPPED)
_LEAST = 2.0  # seconds: with less, a section is not begun


class Failed(Exception):
    """The text is one sentence for the report."""


class Overran(Exception):
    pass


class Skipped(Exception):
    pass


class Blocked(Exception):
    """What an earlier section should have made is not there."""


_ENDS: dict[type[Exception], str] = {Failed: FAILED, Overran: OVERRAN, Skipped: SKIPPED, Blocked: NOT_REACHED}


@dataclass
class Result:
    """What a section found so far."""

    section: str
    title: str
    status: str = NOT_REACHED
    said: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What sections work with; tests give a runner and a clock of their own."""

    machine: Machine
    tree: Path  # the source tree
    out: Path
    run: Runner
    clock: Callable[[], float] = time.monotonic
    algorithm: str | None = None  # the only one to look at
    build: bool = True
    device: str = "cuda"
    save: Callable[[], None] = lambda: None  # called whenever a result has grown
    say: Callable[[str], None] = print
    built: bool = False  # there is a library to test

    @property
    def library(self) -> Path:
        """The folder that the build fills."""
        return self.out / "lib"

    def environment(self) -> dict[str, str]:
        """For processes that import what was built, or with --no-build what is installed."""
        places = [str(self.tree / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
        if (self.library / "fusedrnn").is_dir():
            places.insert(0, str(self.library))
        return {"PYTHONPATH": os.pathsep.join(places)}

    def need_library(self) -> None:
        if not self.built:
            raise Blocked("there is no build to look at")


class Section(NamedTuple):
    name: str
    title: str
    share: float  # of the time that is left, against those of the sections after it
    run: Callable[[Context, Result, float], None]  # the last is its limit in seconds; returning is passing


def run_sections(sections: Sequence[Section], context: Context, results: list[Result], seconds: float) -> None:
    """Runs sections one after the other and fills their results. Time that one leaves goes to those after it."""
    end = context.clock() + seconds
    context.save()
    for number, (section, result) in enumerate(zip(sections, results, strict=True)):
        left = end - context.clock()
        result.limit = left * section.share / sum(later.share for later in sections[number:])
        if result.limit < _LEAST:
            result.said = "no time was left"
            context.save()
            continue
        result.status = RUNNING
        context.say(f"{section.name}: {section.title} (at most {result.limit:.0f} s)")
        context.save()
        start = context.clock()
        try:
            section.run(context, result, result.limit)
            result.status = PASSED
        except tuple(_ENDS) as end_:
            result.status, result.said = _ENDS[type(end_)], str(end_)
        except Exception as error:
            result.status, result.said = FAILED, f"{type(error).__name__}: {error}"
            result.details["traceback"] = traceback.format_exc()
        except BaseException:  # Ctrl-C: what was found so far is kept
            result.status = INTERRUPTED
            raise
        finally:
            result.seconds = context.clock() - start
            context.save()
        context.say(f"  {result.status} in {result.seconds:.0f} s{': ' if result.said else ''}{result.said}")


def exit_status(results: Sequence[Result]) -> int:
    return 0 if all(result.status in GOOD for result in results) else 1
