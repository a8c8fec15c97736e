"""Commands that are stopped at a limit of time, or when nothing is heard of them for too long."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

KEPT_LINES = 60
_GRACE = 3.0  # seconds between the request to end and the kill


@dataclass(frozen=True)
class Finished:
    returncode: int | None  # None: it was stopped
    output: str  # the last lines
    seconds: float
    stopped: str | None = None  # why


def last_line(output: str) -> str:
    """The last that is not blank, or nothing."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


class Runner(Protocol):
    """What runs a command; tests have another one."""

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
        """Runs a command for at most ``limit`` seconds, of which no ``silence`` seconds pass without a line.

        Args:
            env: added to this process's environment.
            on_line: called with each line of stdout and stderr as it comes.
        """
        ...


def run(
    command: Sequence[str],
    *,
    limit: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    silence: float | None = None,
) -> Finished:
    """See :class:`Runner`."""
    start = heard = time.monotonic()
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,  # so that its own children can be stopped with it
        )
    except OSError as error:
        return Finished(127, str(error), 0.0)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        while True:
            now = time.monotonic()
            left = start + limit - now
            quiet = left if silence is None else heard + silence - now
            if left <= 0 or quiet <= 0:
                why = f"stopped after {limit:.0f} s" if left <= 0 else f"stopped after {silence:.0f} s without a word"
                return Finished(None, "".join(kept), now - start, why)
            try:
                line = lines.get(timeout=min(left, quiet))
            except queue.Empty:
                continue
            if line is None:
                break
            heard = time.monotonic()
            kept.append(line)
            if on_line:
                on_line(line)
        # The output is closed, so that only the end of the process is waited for.
        try:
            code = process.wait(timeout=max(0.1, start + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Finished(None, "".join(kept), time.monotonic() - start, f"stopped after {limit:.0f} s")
        return Finished(code, "".join(kept), time.monotonic() - start)
    finally:
        _stop(process)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the process with all that it started. One that hangs in the driver may stay; nobody waits for it."""
    for sign, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
