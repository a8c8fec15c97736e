"""The same call gives the same bits, whatever memory it gets and whatever else runs."""

from __future__ import annotations

import pytest
import torch
from device_cases import DTYPES, Case, assert_bitwise, on_device, poison
from places import Place

from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check_repeats(case: Case, place: Place, repeats: int) -> None:
    first = on_device(case, place.device)
    for _ in range(repeats - 1):
        poison(place.device)
        assert_bitwise(on_device(case, place.device), first)


@each_cell
@each_dtype
def test_repeats_are_bitwise_equal(place: Place, cell: str, dtype: torch.dtype) -> None:
    """Outputs and every gradient."""
    cases = [
        Case(cell, (7, 20, 5, 33), dtype),
        Case(cell, (5, 1, 8, 16), dtype, True, True),
        Case(cell, (7, 20, 5, 33), dtype, masks=("resets", "lengths", "detach_every", "states")),
    ]
    place.check_each(place.some(cases), lambda case: check_repeats(case, place, 2 if place.slow else 4))


@each_cell
@each_dtype
@pytest.mark.hardware
def test_repeats_at_the_size_of_real_layers_are_bitwise_equal(place: Place, cell: str, dtype: torch.dtype) -> None:
    sizes = [(50, 64, 256, 256), (30, 16, 96, 768), (40, 70, 64, 64)]
    place.check_each([Case(cell, size, dtype) for size in sizes], lambda case: check_repeats(case, place, 4))


@each_cell
@pytest.mark.hardware
def test_other_work_on_the_device_changes_nothing(place: Place, cell: str) -> None:
    """A long product on another stream takes multiprocessors away from the layer."""
    case = Case(cell, (30, 32, 64, 128), torch.float16)
    alone = on_device(case, place.device)
    other, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device=place.device)
    for _ in range(3):
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            for _ in range(5):
                busy @ busy
        assert_bitwise(on_device(case, place.device), alone)
    torch.cuda.synchronize()
