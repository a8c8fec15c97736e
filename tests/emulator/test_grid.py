"""csrc/cuda/grid*.cuh, the persistent kernel: how a layer is laid out over a GPU. What it computes is also in
test_recurrence.py, in the shape of tests."""

from __future__ import annotations

import pytest
from emulator.conftest import load
from emulator.recurrence import (
    CELLS,
    GATES,
    NARROW,
    SHIPPED,
    TESTED,
    TYPES,
    WIDE,
    Case,
    check,
    forward,
    grid,
    plan,
    rounded,
    run_backward,
    run_forward,
)

GRID_TYPES = [name for name in TYPES if name != "float64"]
RANDOM = {"order": "random", "seed": 5, "preempt": 50}


@pytest.mark.parametrize("shared", [6 << 10, 7 << 10, 48 << 10], ids=["streamed", "both", "shared"])
@pytest.mark.parametrize("type_name", GRID_TYPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_weights_that_do_not_fit_in_registers(recurrence, cell, type_name, shared):
    """Of the tested shape: one chunk of a warp in registers, and groups of two tiles."""
    case, kernel = Case(cell, type_name, 2, 1, 100), grid(25, TESTED, shared)
    for backward in (False, True):
        made = plan(recurrence, case, kernel, backward)
        assert made["fits"] and made["slots"] > 0
        if shared == 48 << 10:
            assert made["shared_slots"] == made["slots"]
        elif backward:
            assert made["shared_slots"] < made["slots"]
    check(case, kernel, recurrence, **RANDOM)
    several_groups = grid(3, TESTED, 60 << 10)
    assert plan(recurrence, case, several_groups, False)["groups"] > 1
    check(Case(cell, type_name, 2, 2, 100), several_groups, recurrence, **RANDOM)


@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("type_name", GRID_TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_shapes_that_are_shipped(recurrence, cell, type_name, shape):
    check(Case(cell, type_name, 2, 17, 40), grid(5, shape, 99 << 10), recurrence, **RANDOM)


def test_shipped_weights_in_registers_shared_memory_and_l2(recurrence):
    """Of the wide shape, with a sum so long that warps have more chunks than registers."""
    case = Case("gru", "float32", 2, 2, 320, absent=("b_ih",))
    kernel = grid(10, SHIPPED, 22 << 10)
    made = plan(recurrence, case, kernel, True)
    assert made["wide"] and made["slots"] > made["shared_slots"] > 0
    check(case, kernel, recurrence, order="reverse")


@pytest.mark.parametrize("type_name", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_sm_75_multiplies_in_its_own_way(cell, type_name):
    turing = load("checked", 750, recurrence=True)
    for T, B, H, kernel in [(3, 17, 19, grid(3)), (2, 3, 40, grid(2)), (2, 1, 17, grid(2, SHIPPED))]:
        check(Case(cell, type_name, T, B, H), kernel, turing, **RANDOM)


@pytest.mark.parametrize("shape", [TESTED, NARROW, WIDE], ids=["tested", "narrow", "wide"])
def test_tf32_is_where_it_is_asked_for_and_tensor_cores_have_it(shape):
    kernel, asked, exact = grid(3, shape), Case("gru", "tf32", 2, 3, 20), Case("gru", "float32", 2, 3, 20)
    kept = rounded(exact, forward(exact))
    for emulator, same in [(load("checked", recurrence=True), False), (load("checked", 750, recurrence=True), True)]:
        as_tf32, as_float = (run_forward(emulator, case, kernel)["y"] for case in (asked, exact))
        assert (as_tf32 == as_float).all() == same
        as_tf32, as_float = (run_backward(emulator, case, kept, kernel)["delta"] for case in (asked, exact))
        assert (as_tf32 == as_float).all() == same


def test_a_plan_says_what_fits():
    make = load("checked", recurrence=True).module.grid_plan
    # LSTM, H 768 in half precision on 132 multiprocessors: eight units fill four tiles, all weights in registers.
    whole = make(SHIPPED, 132, 227 << 10, 16, 768, 4, 2, False)
    assert (whole["fits"], whole["wide"], whole["blocks"], whole["units"], whole["slots"]) == (True, True, 96, 8, 0)
    # H 2048: 33 MB of weights, of which nothing is streamed.
    large = make(SHIPPED, 132, 227 << 10, 16, 2048, 4, 2, False)
    assert large["fits"] and large["shared_slots"] == large["slots"] > 0
    assert large["shared_bytes"] <= 227 << 10
    streamed = make(SHIPPED, 40, 64 << 10, 1, 1024, 4, 2, False)
    assert streamed["fits"] and streamed["slots"] > streamed["shared_slots"]
    assert streamed["workspace_bytes"] > 0 and streamed["shared_bytes"] <= 64 << 10
    assert not make(SHIPPED, 4, 64 << 10, 128, 1024, 4, 2, False)["fits"]
    for H in (1, 7, 100, 1000):
        for blocks in (1, 3, 40):
            made = make(WIDE, blocks, 1 << 24, 4, H, 3, 4, False)
            assert made["blocks"] <= blocks
            assert (made["blocks"] - 1) * made["units"] < H <= made["blocks"] * made["units"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_shipped_is_wide_where_columns_are_more_than_a_tile(cell, backward):
    make = load("checked", recurrence=True).module.grid_plan
    for H in (5, 10, 40, 41, 80, 700):
        wide = -(-H // 5) * (1 if backward else GATES[cell]) > 8
        problem = 5, 99 << 10, 17, H, GATES[cell], 4, backward
        assert make(SHIPPED, *problem) == make(WIDE if wide else NARROW, *problem)
        assert make(SHIPPED, *problem)["wide"] == (wide and make(SHIPPED, *problem)["fits"])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("type_name", GRID_TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_whether_a_block_can_be_resident_is_asked_of_its_own_kernel(cell, type_name, backward):
    """With the shared memory of its plan, which the kernel has to ask for; and not where there is no plan."""
    ask = load("checked", recurrence=True).module.grid_resident
    size = 2 if type_name.endswith("16") else 4
    numbers = CELLS.index(cell), [*TYPES].index(type_name), backward, SHIPPED
    assert ask(*numbers, 132, 227 << 10, 16, 1024, GATES[cell], size) == 1
    assert ask(*numbers, 132, 227 << 10, 16, 64, GATES[cell], size) == 1
    assert ask(*numbers, 132, 227 << 10, 10_000, 1024, GATES[cell], size) == -1
    # More than a block may ever ask for: the device says so.
    assert ask(*numbers, 4, 1 << 20, 64, 1024, GATES[cell], size) == -1
