"""The JSON and the Markdown of a run, written anew whenever a result has grown, each in one move."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .machine import Machine
from .sections import PASSED, RUNNING, Result

JSON, MARKDOWN = "acceptance.json", "acceptance.md"


def write(out: Path, machine: Machine, results: Sequence[Result], command: str) -> None:
    content = {"command": command, "machine": asdict(machine), "sections": [asdict(result) for result in results]}
    _replace(out / JSON, json.dumps(content, indent=1) + "\n")
    _replace(out / MARKDOWN, markdown(machine, results, command))


def _replace(path: Path, text: str) -> None:
    """Whoever reads sees the old file or the new one, never a half."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown(machine: Machine, results: Sequence[Result], command: str) -> str:
    lines = [f"# Acceptance on {machine.gpu}", "", f"    {command}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in machine.lines().items()]
    lines += ["", "| section | | seconds | limit | |", "|---|---|---|---|---|"]
    lines += [f"| {r.section} | {r.status} | {r.seconds:.0f} | {r.limit:.0f} | {_cell(r.said)} |" for r in results]
    for result in results:
        if body := list(_body(result)):
            lines += ["", f"## {result.section}: {result.title}", "", *body]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _body(result: Result) -> Iterator[str]:
    details = result.details
    if "rows" in details:
        table = _against_nn if result.section == "benchmark" else _of_algorithms
        yield from table(details["rows"])
        yield from _not_reached(details["not_reached"])
    elif "output" in details and result.status not in (PASSED, RUNNING):
        yield from _quoted(details["output"])
    else:
        yield from _tests(details)
        yield from _sanitizers(details)
    if "traceback" in details:
        yield from _quoted(details["traceback"])


def _quoted(text: str) -> Iterator[str]:
    yield from ("```", text.rstrip(), "```")


def _tests(details: dict[str, Any]) -> Iterator[str]:
    for name, part in details.items():
        if not isinstance(part, dict) or "passed" not in part:
            continue
        skipped = sum(part["skipped"].values())
        left = (part["tests"] or 0) - part["passed"] - len(part["failed"]) - skipped
        rest = f", {left} not reached" if left > 0 else ""
        yield f"- {name}: {part['passed']} passed, {len(part['failed'])} failed, {skipped} skipped{rest}"
        yield from (f"  - failed: `{failure['test']}`: {_cell(failure['said'])}" for failure in part["failed"][:20])
        yield from (f"  - skipped {count}: {_cell(reason)}" for reason, count in list(part["skipped"].items())[:10])


def _sanitizers(details: dict[str, Any]) -> Iterator[str]:
    for tool, part in details.items():
        if isinstance(part, dict) and "cases" in part:
            ran = sum(case["outcome"] == "ran" for case in part["cases"])
            yield f"- {tool}: {ran} cases ran, {len(part['cases']) - ran} were refused"
            if errors := [line for line in part["output"].splitlines() if line.startswith("=========")][-12:]:
                yield from ("", *_quoted("\n".join(errors)), "")


def _against_nn(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "µs per step. Ratio above 1: fusedrnn is faster. ~: too noisy to conclude. WRONG: other results than nn.*'s."
    yield ""
    titles = ["cell", "dtype", "B", "T", "H", "nn forward", "ours", "ratio", "nn training", "ours", "ratio"]
    titles += ["algorithms", "difference"]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        shape = " | ".join(map(str, row["shape"].values()))
        if said := row.get("error") or row.get("skipped"):
            yield f"| {shape} | | | | | | | {_cell(said)[:200]} | |"
            continue
        times = " | ".join(_times(row[task]) for task in ("forward", "training"))
        difference = "NaN" if row["difference"] is None else f"{row['difference']:.1e}"
        yield f"| {shape} | {times} | {row['algorithms'] or 'unknown'} | {difference}{' WRONG' * row['wrong']} |"


def _times(task: dict[str, Any]) -> str:
    return f"{task['nn_us']:.2f} | {task['fused_us']:.2f} | {'~' if task['noise'] else ''}{task['ratio']:.2f}"


def _of_algorithms(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.get("algorithms", {})))
    yield "µs per step, forward / training; bold: the fastest; -: it cannot."
    yield ""
    yield f"| cell | dtype | B | T | H | {' | '.join(names)} |"
    yield "|---|---|---|---|---|" + "---|" * len(names)
    for row in rows:
        shape = " | ".join(map(str, row["shape"].values()))
        if said := row.get("error") or row.get("skipped"):
            yield f"| {shape} | {_cell(said)[:200]} |"
            continue
        found = row["algorithms"]
        best = {
            task: min((times[task] for name, times in found.items() if task in times and name != "chosen"), default=0)
            for task in ("forward", "training")
        }
        yield f"| {shape} | {' | '.join(_pair(found[name], best) for name in names)} |"


def _pair(times: dict[str, Any], best: dict[str, float]) -> str:
    if "refused" in times:
        return "-"
    return " / ".join(f"**{times[t]:.2f}**" if times[t] == best[t] else f"{times[t]:.2f}" for t in best)


def _not_reached(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield from ("", f"<details><summary>Not reached: {len(names)} shapes</summary>", "", "; ".join(names))
        yield from ("", "</details>")
