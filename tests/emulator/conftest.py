from __future__ import annotations

import functools
import os

import pytest
from emulator import toolchain
from emulator.toolchain import Emulator

KERNELS = toolchain.HERE / "kernels"
SOURCES = [KERNELS / name for name in ("cases.cu", "device.cu", "matmul.cu", "math.cu")]
RECURRENCE = [
    *(KERNELS / name for name in ("grid_tested_float.cu", "grid_tested_half.cu", "recurrence.cu")),
    *sorted((toolchain.SOURCE / "csrc" / "cuda").glob("*.cu")),
]
# A test starts pytest again for the sanitized build, which Python can load only if the sanitizer was there first.
BUILDS = os.environ.get("EMULATOR_BUILDS", "plain checked").split()


@functools.cache
def attempt(build: str, architecture: int | None = None, recurrence: bool = False) -> Emulator | Exception:
    """What cannot be compiled for one test cannot be for the next."""
    defines = [f"-DFUSEDRNN_EMULATED_ARCH={architecture}"] if architecture else []
    sources, bindings = (RECURRENCE, "recurrence_bindings.cpp") if recurrence else (SOURCES, "bindings.cpp")
    try:
        return Emulator(toolchain.compile_module(build, sources, KERNELS / bindings, defines))
    except (toolchain.Unavailable, RuntimeError) as error:
        return error


def load(build: str, architecture: int | None = None, recurrence: bool = False) -> Emulator:
    if not (toolchain.SOURCE / "csrc").exists():
        pytest.skip("no csrc/ beside tests/: not a source tree")
    made = attempt(build, architecture, recurrence)
    if isinstance(made, toolchain.Unavailable):
        pytest.skip(str(made))
    if isinstance(made, Exception):
        raise made
    return made


@pytest.fixture(params=BUILDS)
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """Kernels in each build."""
    return load(request.param)


@pytest.fixture
def checked() -> Emulator:
    return load("checked")


@pytest.fixture
def plain() -> Emulator:
    return load("plain")


@pytest.fixture
def turing() -> Emulator:
    """The checked build for sm_75."""
    return load("checked", 750)


@pytest.fixture(params=[build for build in BUILDS if build != "plain"])
def recurrence(request: pytest.FixtureRequest) -> Emulator:
    """The kernels of csrc/cuda, in the builds that look at accesses."""
    return load(request.param, recurrence=True)
