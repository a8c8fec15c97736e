"""csrc/cuda/step.cuh over sequences, against float64."""

from __future__ import annotations

import pytest
from emulator.recurrence import CELLS, TYPES, Case, Shape, check
from emulator.toolchain import ORDERS

SIZES = [(1, 1, 1), (2, 3, 7), (5, 5, 16), (2, 1, 33), (2, 3, 40)]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_size_layout_and_direction(recurrence, cell, type_name):
    for i, (T, B, H) in enumerate(SIZES):
        for layout in (i, i + 1, i + 2, i + 3) if i == 1 else (i,):
            case = Case(cell, type_name, T, B, H, reverse=layout % 2 == 1, batch_first=layout // 2 % 2 == 1)
            check(case, Shape(), recurrence, order=ORDERS[i % 3], preempt=50)


@pytest.mark.parametrize("cell", CELLS)
def test_what_may_be_null(recurrence, cell):
    for absent in [("h0", "c0", "dy"), ("dh_n", "dc_n", "b_ih"), ("b_hh", "dh0"), ("dc0",)]:
        check(Case(cell, "float32", 2, 3, 7, absent=absent), Shape(), recurrence, keep=False)
