"""Sizes of real layers, on a GPU alone: more steps, rows and units than one block has."""

from __future__ import annotations

import pytest
import torch
from device_cases import DTYPES, Case, assert_close, exact, on_device
from places import Place

from fusedrnn.ops import CELLS

pytestmark = pytest.mark.hardware

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# T, B, I, H
SIZES = [
    (64, 16, 768, 768),
    (257, 3, 64, 64),
    (50, 128, 512, 512),
    (30, 64, 400, 1150),
    (20, 1, 1024, 1024),
    (33, 129, 65, 257),
    (100, 500, 16, 32),
]


@each_cell
@each_dtype
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_agrees_with_the_reference(place: Place, cell: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    case = Case(cell, size, dtype, batch_first=size[1] == 128, reverse=size[1] == 3)  # type: ignore[arg-type]
    assert_close(on_device(case, place.device), exact(case, place.device), case)
    exact.cache_clear()


@each_cell
def test_a_long_sequence_agrees_with_the_reference(place: Place, cell: str) -> None:
    case = Case(cell, (1024, 16, 32, 128), torch.float32)
    assert_close(on_device(case, place.device), exact(case, place.device), case)
    exact.cache_clear()
