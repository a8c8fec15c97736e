"""Streams, devices, synchronisation, torch.compile, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import places
import pytest
import torch
from cases import Kind, each_layer, f32, flatten
from device_cases import Case, assert_close, draw, exact, fused, leaves, moved, on_device, results
from places import Place

from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)


# ------------------------------------------------------------------------------------------------ streams and devices


@contextmanager
def busy_side_stream(device: str) -> Iterator[None]:
    """A stream that has some 20 ms of other work before it; nothing of the kind on the CPU."""
    if not device.startswith("cuda"):
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(40_000_000)
        yield
    torch.cuda.current_stream().wait_stream(side)


@each_cell
@pytest.mark.parametrize("dtype", [f32, torch.float16], ids=["float32", "float16"])
def test_work_is_queued_on_the_current_stream(place: Place, cell: str, dtype: torch.dtype) -> None:
    """On any other one, it would read x before it is written."""
    case = Case(cell, (5, 6, 4, 20), dtype)
    drawn, grads = draw(case)
    args = leaves(drawn._replace(x=torch.zeros_like(drawn.x)), place.device)
    x = drawn.x.to(place.device)
    incoming = {name: grad.to(place.device) for name, grad in grads.items()}
    with busy_side_stream(place.device):
        with torch.no_grad():
            args.x.copy_(x)
        actual = results(fused, case, args, incoming)
    assert_close(actual, exact(case), case)


@each_cell
@pytest.mark.hardware
def test_a_device_that_is_not_the_current_one(place: Place, cell: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = Case(cell, (5, 6, 4, 20), f32)
    actual = on_device(case, "cuda:1")
    assert {t.device.index for t in actual.values()} == {1} and torch.cuda.current_device() == 0
    assert_close(actual, exact(case), case)


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_cell
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [f32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("masks", [(), ("resets", "lengths", "states"), ("packed",)], ids="-".join)
def test_the_host_never_waits(place: Place, cell: str, dtype: torch.dtype, masks: tuple[str, ...]) -> None:
    case = Case(cell, (5, 6, 4, 20), dtype, states="none", masks=masks)
    args = leaves(draw(case).args, place.device)
    grads = {name: grad.to(place.device) for name, grad in draw(case).grads.items()}
    results(fused, case, args, grads)
    with no_synchronisation(place.device):
        actual = results(fused, case, args, grads)
        with torch.no_grad():
            fused(case, args)
    assert_close(actual, exact(case), case)


@each_cell
@pytest.mark.hardware
def test_repeated_calls_leave_no_memory_behind(place: Place, cell: str) -> None:
    case = Case(cell, (5, 6, 4, 20), f32)
    for _ in range(2):
        on_device(case, place.device)
    gc.collect()  # what earlier tests left in cycles
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        on_device(case, place.device)
    assert torch.cuda.memory_allocated() == before


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.any_algorithm
@each_layer
def test_tensors_on_two_devices_are_refused(place: Place, kind: Kind) -> None:
    place.needs_torchs_own()
    elsewhere = "cpu" if place.on_gpu else "meta"
    module = kind.ours(3, 4)
    x, hx = kind.example(module, dtype=f32)
    for where, state in ((place.device, elsewhere), (elsewhere, place.device)):
        with pytest.raises(RuntimeError, match="device"):
            module.to(place.device)(x.detach().to(where), moved(hx, state))
    with pytest.raises(RuntimeError, match="device"):
        module.to(place.device)(x.detach().to(elsewhere))


@pytest.mark.any_algorithm
@each_layer
def test_tensors_of_two_dtypes_are_refused(device: str, kind: Kind) -> None:
    module = kind.ours(3, 4).to(device)
    x, hx = (moved(tree, device) for tree in kind.example(module, dtype=f32))
    with pytest.raises((RuntimeError, ValueError), match="dtype"):
        module(x.double())
    for wrong in (torch.float64, torch.float16):
        states = tuple(s.to(wrong) for s in flatten(hx))
        with pytest.raises(RuntimeError, match="dtype"):
            module(x, states if len(states) == 2 else states[0])


@pytest.mark.any_algorithm
@each_cell
def test_an_algorithm_that_cannot_or_does_not_exist_is_refused_by_name(
    place: Place, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU has none, and does not look."""
    for name, said in (("block", "the algorithm block does not run float64"), ("fast", "there is no algorithm fast")):
        monkeypatch.setenv(places.FORCE, name)
        case = Case(cell, (3, 2, 4, 5), torch.float64)
        if not place.chooses:
            on_device(case, place.device)
            continue
        with pytest.raises(RuntimeError, match=said):
            on_device(case, place.device)
