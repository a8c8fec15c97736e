"""The kernels of csrc/cuda over whole sequences, against float64: single steps, block and grid."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.recurrence import (
    CELLS,
    STEP,
    TYPES,
    Case,
    block,
    check,
    forward,
    grid,
    rounded,
    run_backward,
    run_forward,
)

KERNELS = {
    "step": {"types": list(TYPES)},
    "block": {"types": ["float32", "float16", "bfloat16"]},
    "grid": {"types": ["float32", "tf32", "float16", "bfloat16"]},
}
KERNELS["step"]["types"].remove("tf32")  # of the GEMM, which is not here
EACH = pytest.mark.parametrize(
    "kernel, cell, type_name", [(k, cell, name) for k in KERNELS for cell in CELLS for name in KERNELS[k]["types"]]
)
EVERY_KERNEL = pytest.mark.parametrize("kernel, cell", [(k, cell) for k in KERNELS for cell in CELLS])
SCHEDULES = [{"order": "forward"}, {"order": "reverse"}, {"order": "random", "seed": 3, "preempt": 50}]

# T, B, H: nothing, one, odd sizes, more rows than a pass of grid, whole passes and tiles; with shapes of block, where
# rows fill a block and where they do not, and blocks of grid, of which there may be more than units.
SIZES = [
    ((0, 3, 7), block(1, 2), grid(2)),
    ((1, 1, 1), block(1, 1), grid(2)),
    ((1, 5, 33), block(4, 1), grid(3)),
    ((2, 33, 16), block(4, 2), grid(1)),
    ((5, 1, 40), block(4, 1), grid(5)),
    ((4, 16, 8), block(1, 3), grid(2)),
]


def layout(kernel: str, of_block, of_grid):
    return {"step": STEP, "block": of_block, "grid": of_grid}[kernel]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["order"])
@EACH
def test_every_layout_and_direction_under_every_schedule(recurrence, kernel, cell, type_name, schedule):
    for reverse, batch_first in [(False, False), (True, False), (False, True), (True, True)]:
        case = Case(cell, type_name, 3, 17, 19, reverse=reverse, batch_first=batch_first)
        check(case, layout(kernel, block(4, 2), grid(3)), recurrence, **schedule)


@EACH
def test_every_size(recurrence, kernel, cell, type_name):
    for i, (size, *layouts) in enumerate(SIZES):
        case = Case(cell, type_name, *size, reverse=i % 2 == 1, batch_first=i // 2 % 2 == 1)
        check(case, layout(kernel, *layouts), recurrence, **SCHEDULES[i % 3])


NULL = [("h0", "c0", "dy"), ("dh_n", "dc_n", "b_ih"), ("b_hh", "dh0"), ("dc0",)]


@pytest.mark.parametrize("absent", [*NULL, sum(NULL, ())], ids=" ".join)
@EVERY_KERNEL
def test_what_may_be_null(recurrence, kernel, cell, absent):
    """Nothing is kept of forward either."""
    for T in (2, 0):
        for of_block in (block(1, 1), block(4, 1)):
            case = Case(cell, "float32", T, 3, 7, absent=absent)
            check(case, layout(kernel, of_block, grid(2)), recurrence, keep=False)


@EVERY_KERNEL
def test_a_sequence_without_steps_hands_states_on_as_they_are(recurrence, kernel, cell):
    case = Case(cell, "float16", 0, 5, 9)
    made = layout(kernel, block(4, 1), grid(2))
    out = run_forward(recurrence, case, made) | run_backward(recurrence, case, forward(case), made)
    pairs = {"h_n": "h0", "dh0": "dh_n"} | ({"c_n": "c0", "dc0": "dc_n"} if cell == "lstm" else {})
    for name, source in pairs.items():
        np.testing.assert_array_equal(out[name], case.data[source], err_msg=name)


@EVERY_KERNEL
def test_results_are_the_same_bits_under_every_schedule(recurrence, kernel, cell):
    case, made = Case(cell, "float32", 3, 18, 16), layout(kernel, block(4, 1), grid(3))
    kept, seen = rounded(case, forward(case)), []
    for schedule in SCHEDULES:
        both = [run_forward(recurrence, case, made, **schedule), run_backward(recurrence, case, kept, made, **schedule)]
        seen.append([v for out in both for v in out.values()])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("masks", ["padded", "packed"])
@EACH
def test_masks_in_every_direction_and_layout(recurrence, kernel, cell, type_name, masks):
    """Rows that end early, states that are zeroed, steps that are detached, and for the LSTM gradients of every c."""
    layouts = [(False, False), (True, False), *([(False, True), (True, True)] if masks == "padded" else [])]
    for i, (reverse, batch_first) in enumerate(layouts):
        case = Case(cell, type_name, 4, 17, 19, reverse=reverse, batch_first=batch_first, masks=masks)
        check(case, layout(kernel, block(4, 2), grid(3)), recurrence, **SCHEDULES[i % 3])


@pytest.mark.parametrize("masks", ["padded", "packed"])
@EVERY_KERNEL
def test_masks_of_every_size(recurrence, kernel, cell, masks):
    for i, (size, *layouts) in enumerate(SIZES):
        if size[0] > 0:
            case = Case(cell, "float32", *size, reverse=i % 2 == 0, masks=masks)
            check(case, layout(kernel, *layouts), recurrence, **SCHEDULES[i % 3])


@pytest.mark.parametrize("absent", [*NULL, ("dc",), sum(NULL, ("dc",))], ids=" ".join)
@EVERY_KERNEL
def test_what_may_be_null_with_masks(recurrence, kernel, cell, absent):
    case = Case(cell, "float32", 3, 5, 7, reverse=True, absent=absent, masks="padded")
    check(case, layout(kernel, block(4, 1), grid(2)), recurrence, keep=False)
