"""How kernels are compiled: for the emulator, under sanitizers, and by nvcc for every architecture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulator import toolchain
from emulator.conftest import KERNELS, SOURCES, attempt, load
from emulator.test_checks import LINES, NAMES


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def sanitized(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs Python with the address sanitizer loaded first."""
    library = run([*toolchain.compiler(), "-print-file-name=libasan.so"])
    path = Path(library.stdout.strip()).resolve()
    if not path.is_file():
        pytest.skip("no libasan")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(path),
        "ASAN_OPTIONS": "detect_leaks=0",
        "EMULATOR_BUILDS": "sanitized",
        "PYTHONPATH": str(toolchain.HERE.parent),
    }
    return run([sys.executable, *command], cwd=toolchain.SOURCE, env=environment)


@pytest.fixture(scope="module")
def sanitized_module() -> Path:
    if not (toolchain.SOURCE / "csrc").exists():
        pytest.skip("no csrc/ beside tests/: not a source tree")
    try:
        return toolchain.compile_module("sanitized", SOURCES, KERNELS / "bindings.cpp")
    except toolchain.Unavailable as error:
        pytest.skip(str(error))


def test_sanitizers_find_nothing_in_what_is_right(sanitized_module):
    # Not what imports torch: the conftest.py above, and the tests of the glue, which have no sanitized build.
    tests = [str(path) for path in sorted(toolchain.HERE.glob("test_*.py")) if path.name != "test_glue.py"]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--confcutdir", str(toolchain.HERE)]
    # In one order: sanitizers do not look at it.
    chosen = "sanitized and not reverse and not random"
    done = sanitized([*command, "-k", chosen, *tests])
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize(
    "name, says", [("part_overflow", "AddressSanitizer: heap-buffer-overflow"), ("misaligned", "misaligned address")]
)
def test_sanitizers_name_a_fault(sanitized_module, name, says):
    code = (
        "import numpy as np; from pathlib import Path; from emulator.toolchain import Emulator\n"
        f"e = Emulator(Path({str(sanitized_module)!r}))\n"
        f"e.launch('run_case', {NAMES.index(name)}, np.zeros(256, 'f'), np.zeros(256, 'f'), None)"
    )
    done = sanitized(["-c", code])
    assert done.returncode != 0
    assert says in done.stdout
    assert f"cases.cu:{LINES[name][0]}" in done.stdout


def test_a_module_is_compiled_once_for_the_same_sources_and_again_for_others(checked, tmp_path, monkeypatch):
    def no_compiler(*_):
        raise AssertionError("compiles")

    monkeypatch.setattr(toolchain, "make", no_compiler)
    path = toolchain.compile_module("checked", SOURCES, KERNELS / "bindings.cpp")
    assert path.exists()
    changed = tmp_path / "math.cu"
    changed.write_text((KERNELS / "math.cu").read_text(encoding="ascii") + "// changed\n", encoding="ascii")
    with pytest.raises(AssertionError, match="compiles"):
        toolchain.compile_module("checked", [*SOURCES[:-1], changed], KERNELS / "bindings.cpp")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_compiles_every_kernel_for_every_architecture_without_a_warning_or_a_spill(tmp_path, monkeypatch):
    build_tools = toolchain.SOURCE / "build_tools"
    if not build_tools.exists():
        pytest.skip("no build_tools/ beside tests/: not a source tree")
    monkeypatch.syspath_prepend(build_tools)
    import nvcc

    def compile(source: Path, architecture: int) -> str:
        try:
            nvcc.compile_cubin(source, architecture, tmp_path / f"{architecture}.cubin", [f"-I{toolchain.SOURCE}"])
        except nvcc.CompileError as error:
            return str(error)
        return ""

    together = tmp_path / "all.cu"
    together.write_text("".join(f'#include "{path}"\n' for path in SOURCES), encoding="utf-8")
    known = [a for a in nvcc.ARCHITECTURES if f"compute_{a}" in run(["nvcc", "--list-gpu-arch"]).stdout.split()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = dict(zip(known, pool.map(lambda architecture: compile(together, architecture), known), strict=True))
    assert said
    assert {architecture: text for architecture, text in said.items() if text} == {}


def test_what_is_missing_is_a_reason_to_skip(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    attempt.cache_clear()
    try:
        with pytest.raises(pytest.skip.Exception, match=r"no \S+"):
            load("checked")
    finally:
        attempt.cache_clear()
