"""The kernels without torch: a program of its own, linked with them, under sanitizers and on another processor."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from isas import each_isa, skip_unless_supported

from fusedrnn import _build_info

SOURCE = Path(__file__).parents[2]
PROGRAM = Path("tests/cpu/standalone/main.cpp")

pytestmark = pytest.mark.skipif(not (SOURCE / "csrc").exists(), reason="no csrc/ beside tests/: not a source tree")

# Of a run under a sanitizer or an emulator; a tenth of this is enough, and a deadlock must not last.
PATIENCE = 120

UNDEFINED = "bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow,unreachable,return"


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C++ compiler: {command[0]}")
    return command


def output(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=SOURCE,
        env={**os.environ, "FUSEDRNN_ISA": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def build(folder: Path, cxx: list[str], machine: str, *options: str) -> str:
    """The program with kernels for `machine`, compiled with more options than those of the library."""
    sources = {**runpy.run_path(str(SOURCE / "build_tools/flags.py"))["cpu_sources"](machine), PROGRAM: "-std=c++17"}
    objects = [str(folder / f"{Path(path).stem}.o") for path in sources]

    def compile(path: str | Path, flags: str, to: str) -> None:
        output([*cxx, *shlex.split(flags), *options, "-c", str(path), "-o", to])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile, sources, sources.values(), objects))
    return link(folder, cxx, objects, *options)


def link(folder: Path, cxx: list[str], objects: Iterable[str], *options: str) -> str:
    program = str(folder / "standalone")
    output([*cxx, *options, *objects, "-pthread", "-o", program])
    return program


def objects_of_the_library() -> dict[str, Path]:
    """What the library in this tree was linked of."""
    objects = sorted((SOURCE / "build/ninja" / f"fusedrnn._C-torch-{_build_info.TORCH}" / "csrc/cpu").glob("*.o"))
    if not objects:
        pytest.skip("the library was not built in this tree")
    headers = max(path.stat().st_mtime for path in (SOURCE / "csrc").rglob("*.h"))
    if headers > min(path.stat().st_mtime for path in objects if path.stem.startswith("isa")):
        pytest.skip("the library is older than csrc/: build it again")
    return {path.stem: path for path in objects}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, cxx = tmp_path_factory.mktemp("native"), compiler()
    output([*cxx, "-std=c++17", "-O1", "-Wall", "-Wextra", "-c", str(PROGRAM), "-o", str(folder / "main.o")])
    return link(folder, cxx, [*map(str, objects_of_the_library().values()), str(folder / "main.o")])


@pytest.mark.parametrize("threads, every", [(1, 3), (3, 1), (5, 7)])
@each_isa
def test_every_layer_agrees_with_a_naive_one(program, isa, threads, every):
    skip_unless_supported(isa)
    report = output([program, str(threads), str(every)], FUSEDRNN_ISA=isa)
    assert report.startswith(f"{isa}, {threads} threads"), report


# The vectors of the baseline serve here: others take minutes to compile.
@pytest.mark.parametrize(
    "sanitizers, options, every",
    [
        # Calls instead of code at each access take half the time to compile, as does what is left out of `undefined`.
        (f"address,{UNDEFINED}", "--param asan-instrumentation-with-call-threshold=0", 5),
        ("thread", "", 17),
    ],
    ids=["address-undefined", "thread"],
)
def test_sanitizers_find_nothing(tmp_path, sanitizers, options, every):
    cxx = compiler()
    flags = ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *shlex.split(options)]
    trial = tmp_path / "trial.cpp"
    trial.write_text("int main() {}\n", encoding="ascii")
    if subprocess.run([*cxx, *flags, str(trial), "-o", str(tmp_path / "trial")], capture_output=True).returncode:
        pytest.skip(f"{cxx[0]} has no such sanitizer")
    trial = subprocess.run([str(tmp_path / "trial")], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"the sanitizer does not start here: {trial.stderr[:100]}")
    output([build(tmp_path, cxx, "baseline", *flags), "3", str(every)])


def test_arm_kernels_agree_with_a_naive_layer(tmp_path):
    cxx, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (cxx, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} (Debian and Ubuntu: apt install g++-aarch64-linux-gnu qemu-user)")
    program = build(tmp_path, [cxx], "aarch64", "-O1", "-static")
    assert output([emulator, program, "2", "11"]).startswith("baseline, 2 threads")


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@each_isa
def test_objects_of_an_instruction_set_export_one_function_and_nothing_that_can_be_merged(isa):
    lines = output(["nm", "--demangle", "--defined-only", str(objects_of_the_library()[f"isa_{isa}"])]).splitlines()
    symbols = [line.split(" ", 2)[1:] for line in lines]
    # Lower case is local; weak and unique symbols are w, v and u in either case.
    exported = [(kind, name) for kind, name in symbols if kind.isupper() or kind in "wvu"]
    assert exported == [("T", f"fusedrnn::cpu::isa_{isa}()")]
