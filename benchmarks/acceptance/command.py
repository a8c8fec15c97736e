"""The command line. argparse: a machine lent for minutes has PyTorch and pytest, and click perhaps not."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from . import checks, machine, processes, report, timings
from .plan import ALGORITHMS
from .sections import Context, Result, Section, exit_status, run_sections

TREE = Path(__file__).parents[2]
NO_GPU = 2  # exit status

# Shares are of the time that is left, against the sections after it. What one leaves goes to those after it, at last
# to the benchmark.
SECTIONS = [
    Section("build", "CUDA kernels for this GPU", 85, checks.build),
    Section(
        "tests",
        "tests marked cuda, for each algorithm",
        70,
        partial(
            checks.tests,
            files=[
                "test_layers.py",
                "test_masks.py",
                "test_modules.py",
                "test_runtime.py",
                "test_large.py",
                "test_compile.py",
            ],
            by_algorithm=True,
        ),
    ),
    Section("gradcheck", "finite differences on the device", 12, partial(checks.tests, files=["test_derivatives.py"])),
    Section("determinism", "bitwise equal repeats", 10, partial(checks.tests, files=["test_determinism.py"])),
    Section("sanitizer", "compute-sanitizer on a small case of every kernel", 25, checks.sanitize),
    Section("graphs", "CUDA graph capture", 8, partial(checks.tests, files=["test_graphs.py"])),
    Section("algorithms", "step, block and grid against each other", 20, timings.algorithms),
    Section("benchmark", "against nn.*", 50, timings.benchmark),
]


def parser() -> argparse.ArgumentParser:
    names = [section.name for section in SECTIONS]
    made = argparse.ArgumentParser(
        prog="gpu_acceptance.py",
        description="Build, test and time the CUDA kernels on the GPU of this machine. Results are written to "
        f"{report.JSON} and {report.MARKDOWN} as they come. Exit status: 0 all is well, 1 a section failed or did not "
        f"end, {NO_GPU} there is no GPU to run on.",
    )
    made.add_argument("--minutes", type=_positive, default=8.0, help="for everything  [default: 8]")
    made.add_argument(
        "--sections",
        type=_sections,
        default=names,
        metavar="NAME,...",
        help=f"some of {','.join(names)}  [default: all]",
    )
    made.add_argument("--out", type=Path, default=Path("acceptance"), help="folder for results  [default: acceptance]")
    made.add_argument("--no-build", action="store_true", help="take what an earlier run built, or what is installed")
    made.add_argument("--algorithm", choices=ALGORITHMS, help="look at this one only  [default: all]")
    return made


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected more than 0 minutes, got {text}")
    return value


def _sections(text: str) -> list[str]:
    names, known = text.split(","), [section.name for section in SECTIONS]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, got {name!r}")
    return names


def main(
    arguments: Sequence[str] | None = None,
    run: processes.Runner = processes.run,
    clock: Callable[[], float] = time.monotonic,
    sections: Sequence[Section] = SECTIONS,
    device: str = "cuda",
) -> int:
    """Runs the command; the other arguments are what tests replace."""
    options = parser().parse_args(arguments)
    start = clock()
    try:
        found = machine.find(run)
    except machine.Unfit as error:
        print(f"gpu_acceptance: {error}.", file=sys.stderr)
        return NO_GPU
    for name, text in found.lines().items():
        print(f"{name + ':':<14}{text}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Without its build, a run still asks what it looks at.
    chosen = [s for s in sections if s.name in options.sections or s.name == "build"]
    results = [Result(section.name, section.title) for section in chosen]
    command = shlex.join(
        ["python", "benchmarks/gpu_acceptance.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    context = Context(
        machine=found,
        tree=TREE,
        out=out,
        run=run,
        clock=clock,
        algorithm=options.algorithm,
        build=not options.no_build and "build" in options.sections,
        device=device,
        save=lambda: report.write(out, found, results, command),
    )
    run_sections(chosen, context, results, options.minutes * 60 - (clock() - start))
    print(f"written: {out / report.JSON}, {out / report.MARKDOWN}")
    return exit_status(results)
