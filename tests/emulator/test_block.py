"""csrc/cuda/block.cuh: the kernels that keep w_hh in shared memory, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.recurrence import CELLS, TYPES, Case, Shape, check, run_backward, run_forward
from emulator.recurrence import forward as reference
from emulator.toolchain import ORDERS

SHARED = [name for name in TYPES if name != "float64"]
# Rows that fill the block and rows that do not, of one block and of several.
SIZES = [
    (1, 1, 1, Shape(1, 1)),
    (2, 3, 7, Shape(1, 2)),
    (5, 5, 16, Shape(4, 1)),
    (2, 1, 33, Shape(4, 1)),
    (2, 3, 40, Shape(1, 3)),
    (2, 9, 7, Shape(4, 2)),
]


@pytest.mark.parametrize("type_name", SHARED)
@pytest.mark.parametrize("cell", CELLS)
def test_every_size_layout_and_direction(recurrence, cell, type_name):
    for i, (T, B, H, shape) in enumerate(SIZES):
        for layout in (i, i + 1, i + 2, i + 3) if i == 1 else (i,):
            case = Case(cell, type_name, T, B, H, reverse=layout % 2 == 1, batch_first=layout // 2 % 2 == 1)
            check(case, shape, recurrence, order=ORDERS[i % 3], preempt=200)


@pytest.mark.parametrize("rows_per_thread", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_what_may_be_null(recurrence, cell, rows_per_thread):
    for absent in [("h0", "c0", "dy"), ("dh_n", "dc_n", "b_ih"), ("b_hh", "dh0"), ("dc0",)]:
        check(Case(cell, "float32", 2, 3, 7, absent=absent), Shape(rows_per_thread, 1), recurrence, keep=False)


@pytest.mark.parametrize("cell", CELLS)
def test_results_are_the_same_bits_under_every_schedule(recurrence, cell):
    case, shape = Case(cell, "float32", 3, 5, 16), Shape(4, 1)
    kept, seen = reference(case), []
    for order in ORDERS:
        forward = run_forward(recurrence, case, shape, order=order, preempt=20)
        seen.append([*forward.values(), *run_backward(recurrence, case, kept, shape, order=order, preempt=20).values()])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
