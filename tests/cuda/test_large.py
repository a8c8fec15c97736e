"""Sizes of real layers, on a GPU alone: more steps, rows and units than one block has."""

from __future__ import annotations

import pytest
import torch
from device_cases import DTYPES, Case, assert_close, draw, exact, on_device
from places import Place

from fusedrnn.ops import CELLS

pytestmark = pytest.mark.hardware

each_cell = pytest.mark.parametrize("cell", CELLS)

f64, f32, f16, bf16 = DTYPES
# T, B, I, H, and with which types besides float16
SIZES = {
    (64, 16, 768, 768): [bf16, f32],
    (129, 3, 64, 64): [f32, f64],
    (50, 128, 512, 512): [f32],
    (30, 64, 400, 1150): [bf16, f64],
    (20, 1, 1024, 1024): [f32],
    (33, 129, 65, 257): [bf16],
    (100, 500, 16, 32): [f32, bf16],
}
CASES = [(size, dtype) for size, others in SIZES.items() for dtype in [f16, *others]]


def check(case: Case, device: str) -> None:
    assert_close(on_device(case, device), exact(case, device), case)
    for cached in (draw, exact):  # which are large
        cached.cache_clear()


@each_cell
@pytest.mark.parametrize(
    "size, dtype", CASES, ids=[f"{'x'.join(map(str, size))}-{str(dtype)[6:]}" for size, dtype in CASES]
)
def test_agrees_with_the_reference(place: Place, cell: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    check(Case(cell, size, dtype, batch_first=size[1] == 128, reverse=size[1] == 3), place.device)  # type: ignore[arg-type]


@each_cell
@pytest.mark.parametrize("masks", [("resets", "lengths", "states"), ("resets", "packed")], ids="-".join)
@pytest.mark.parametrize(
    "size, dtype", [((40, 64, 256, 256), f16), ((40, 64, 256, 256), f32), ((30, 33, 65, 768), bf16)], ids=str
)
def test_masks_agree_with_the_reference(
    place: Place, cell: str, size: tuple[int, int, int, int], dtype: torch.dtype, masks: tuple[str, ...]
) -> None:
    check(Case(cell, size, dtype, reverse=size[1] == 33, masks=masks), place.device)


@each_cell
def test_a_long_sequence_agrees_with_the_reference(place: Place, cell: str) -> None:
    check(Case(cell, (1024, 16, 32, 128), f32), place.device)
