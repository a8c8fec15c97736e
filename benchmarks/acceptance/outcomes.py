"""A plugin of pytest that says what comes of each test as it happens, one line of JSON each, so that a run which is
stopped or crashes leaves what it had.

FUSEDRNN_TESTS_DONE names a file with the tests, one a line, that an earlier run has done: they are left out. A run ends
at the first error of the CUDA driver, since nothing works in that process any more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DONE = "FUSEDRNN_TESTS_DONE"


class Outcomes:
    def __init__(self, config: Any) -> None:
        self.config = config
        self.session: Any = None

    def _write(self, **facts: Any) -> None:
        self.config.pluginmanager.get_plugin("terminalreporter").write_line(json.dumps(facts))

    def pytest_sessionstart(self, session: Any) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        path = os.environ.get(DONE)
        done = set(Path(path).read_text(encoding="utf-8").splitlines()) if path else set()
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_collection_finish(self, session: Any) -> None:
        self._write(tests=len(session.items))

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str]:
        """Instead of dots, which would stand before the JSON."""
        return ("" if report.when != "call" and report.passed else report.outcome), "", ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(begun=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = "" if report.outcome == "passed" else _said(report)
            self._write(test=report.nodeid, outcome=report.outcome, said=said)
            if report.outcome == "failed" and "CUDA error" in report.longreprtext:
                self.session.shouldstop = "the CUDA context is lost"


def _said(report: Any) -> str:
    if isinstance(report.longrepr, tuple):  # of a skip: path, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return " ".join(lines[:3])[:400] or report.longreprtext[-400:]


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Outcomes(config), "acceptance-outcomes")
