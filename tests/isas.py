"""The instruction sets that have kernels, and tests that run once for each of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ISAS = ["baseline", "avx2", "avx512"] if platform.machine() == "x86_64" else ["baseline"]

each_isa = pytest.mark.parametrize("isa", ISAS)
# A file that runs itself again for each of them must not do so in those runs.
not_within_itself = pytest.mark.skipif("FUSEDRNN_ISA" in os.environ, reason="this run is for one instruction set")


def skip_unless_supported(isa: str) -> None:
    if isa == "baseline":
        return
    # By what the system says of the processor.
    with open("/proc/cpuinfo", encoding="ascii") as file:
        flags = set(next(line for line in file if line.startswith("flags")).split())
    wanted = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    if not wanted[isa] <= flags:
        pytest.skip(f"this processor has no {isa}")


def assert_tests_pass(file: str, isa: str) -> None:
    """Runs the tests of a file with the kernels of one instruction set."""
    skip_unless_supported(isa)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "FUSEDRNN_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
