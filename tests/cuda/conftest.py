"""Every test here takes `device` or `place`, and runs in each place (places.py): those on a GPU are marked `cuda`.

A test marked `hardware` is about the GPU itself and has no twin on the CPU; one marked `any_algorithm` is about what no
algorithm decides, and runs with none forced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import places
import pytest
import torch
from emulator import glue, toolchain
from places import Place


@contextmanager
def emulated() -> Iterator[Any]:
    """The glue of csrc/ops_cuda.cpp and its kernels, on CPU tensors: a device of few multiprocessors, since the
    emulator runs a thread at a time."""
    if not glue.CSRC.exists():
        pytest.skip("no csrc/ beside tests/: not a source tree")
    try:
        glue.load()
    except toolchain.Unavailable as error:
        pytest.skip(str(error))
    with glue.in_place_of_the_cpu() as operators:
        operators.set_device(4, 227 << 10, 90, True, False)
        yield


places.PLACES += [
    Place(name, "cpu", algorithm, chooses=True, operators=emulated)
    for name, algorithm in [("emulated", None), *((f"emulated-{name}", name) for name in ("step", "block", "grid"))]
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" not in metafunc.fixturenames:
        return
    chosen = list(places.PLACES)
    if places.why_no_gpu():  # one skipped test tells as much as one for each algorithm
        chosen = [place for place in chosen if not (place.on_gpu and place.algorithm)]
    if metafunc.definition.get_closest_marker("hardware"):
        chosen = [place for place in chosen if place.on_gpu]
    if metafunc.definition.get_closest_marker("any_algorithm"):
        chosen = [place for place in chosen if place.algorithm is None]
    parameters = [
        pytest.param(place, marks=pytest.mark.cuda if place.on_gpu else (), id=place.name) for place in chosen
    ]
    metafunc.parametrize("place", parameters, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with request.param.entered():
        yield request.param


@pytest.fixture
def device(place: Place) -> str:
    return place.device


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    """float32 is float32 unless a test asks for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skips where the algorithm that is forced says that it cannot run what is asked."""
    place = pyfuncitem.funcargs.get("place")
    try:
        return (yield)  # type: ignore[return-value]
    except RuntimeError as error:
        must_run = pyfuncitem.get_closest_marker("must_run")
        if must_run or not isinstance(place, Place) or not place.refuses(error):
            raise
        pytest.skip(str(error))
