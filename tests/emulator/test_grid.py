"""csrc/cuda/grid*.cuh, the persistent kernel: how a layer is laid out over a GPU. What it computes is also in
test_recurrence.py, in the shape of tests."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.conftest import load
from emulator.recurrence import (
    BROAD,
    CELLS,
    GATES,
    NARROW,
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


SHAPES = {"narrow": NARROW, "wide": WIDE, "broad": BROAD}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("type_name", GRID_TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_shapes_that_are_shipped(recurrence, cell, type_name, shape):
    check(Case(cell, type_name, 2, 17, 40), grid(5, shape, 99 << 10), recurrence, **RANDOM)
    check(Case(cell, type_name, 3, 17, 40, masks="padded"), grid(5, shape, 99 << 10), recurrence, **RANDOM)


def test_shipped_weights_in_registers_shared_memory_and_l2(recurrence):
    """Of the wide shape, with a sum so long that warps have more chunks than registers."""
    case = Case("gru", "float32", 2, 2, 320, absent=("b_ih",))
    kernel = grid(10, WIDE, 22 << 10)
    made = plan(recurrence, case, kernel, True)
    assert made["slots"] > made["shared_slots"] > 0
    check(case, kernel, recurrence, order="reverse")


@pytest.mark.parametrize("type_name", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_sm_75_multiplies_in_its_own_way(cell, type_name):
    turing = load("checked", 750, recurrence=True)
    for T, B, H, kernel in [(3, 17, 19, grid(3)), (2, 3, 40, grid(2)), (2, 1, 17, grid(2, NARROW))]:
        check(Case(cell, type_name, T, B, H), kernel, turing, **RANDOM)


@pytest.mark.parametrize("shape", [TESTED, *SHAPES.values()], ids=["tested", *SHAPES])
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
    whole = make(WIDE, 132, 227 << 10, 1, 16, 768, 4, 2, False)
    assert (whole["fits"], whole["blocks"], whole["units"], whole["slots"]) == (True, 96, 8, 0)
    # H 2048: 33 MB of weights, of which nothing is streamed.
    large = make(WIDE, 132, 227 << 10, 1, 16, 2048, 4, 2, False)
    assert large["fits"] and large["shared_slots"] == large["slots"] > 0
    assert large["shared_bytes"] <= 227 << 10
    streamed = make(WIDE, 40, 64 << 10, 1, 1, 1024, 4, 2, False)
    assert streamed["fits"] and streamed["slots"] > streamed["shared_slots"]
    assert streamed["workspace_bytes"] > 0 and streamed["shared_bytes"] <= 64 << 10
    assert not make(WIDE, 4, 64 << 10, 1, 128, 1024, 4, 2, False)["fits"]
    for H in (1, 7, 100, 1000):
        for blocks in (1, 3, 40):
            made = make(WIDE, blocks, 1 << 24, 1, 4, H, 3, 4, False)
            assert made["blocks"] <= blocks
            assert (made["blocks"] - 1) * made["units"] < H <= made["blocks"] * made["units"]


def test_teams_cover_the_rows_and_none_is_without_any():
    make = load("checked", recurrence=True).module.grid_plan
    for B in (1, 5, 16, 17, 64, 100):
        for teams in (1, 2, 3, 7, 64):
            made = make(NARROW, 2, 99 << 10, teams, B, 40, 3, 4, False)
            assert 1 <= made["teams"] <= teams
            assert (made["teams"] - 1) * made["rows"] < B <= made["teams"] * made["rows"]


@pytest.mark.parametrize("shape", [TESTED, *SHAPES.values()], ids=["tested", *SHAPES])
@pytest.mark.parametrize("cell", CELLS)
def test_teams_run_their_rows_by_themselves(recurrence, cell, shape):
    """Rows of the last team are fewer; a team has more than a pass of them, or less."""
    for type_name, B, teams in [("float32", 11, 3), ("float16", 35, 2), ("bfloat16", 18, 5)]:
        kernel = grid(2, shape, 99 << 10, teams)
        assert plan(recurrence, Case(cell, type_name, 2, B, 19), kernel, False)["teams"] == teams
        for masks in ("", "packed" if teams == 2 else "padded"):
            layout = {"reverse": teams == 2, "batch_first": teams == 5}
            check(Case(cell, type_name, 6, B, 19, **layout, masks=masks), kernel, recurrence, **RANDOM)


@pytest.mark.parametrize("type_name", ["float32", "float16"])
def test_a_state_that_looks_like_none_is_passed_on(recurrence, type_name):
    """The NaN with all bits set stands for what is not there yet: a caller may bring it all the same."""
    case = Case("rnn_tanh", type_name, 3, 5, 19)
    case.data["h0"][1, 3] = np.array(-1, np.int64).view(np.float64)
    case.data["dh_n"][2, 4] = case.data["h0"][1, 3]
    stored = TYPES[type_name].store(case.data["h0"])
    assert int(stored.view(f"u{stored.itemsize}")[1, 3]) == 2 ** (8 * stored.itemsize) - 1
    clean = Case("rnn_tanh", type_name, 3, 5, 19)
    y, right = run_forward(recurrence, case, grid(3))["y"], run_forward(recurrence, clean, grid(3))["y"]
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_array_equal(np.delete(y, 1, 1), np.delete(right, 1, 1))
    kept = rounded(clean, forward(clean))
    delta = run_backward(recurrence, case, kept, grid(3))["delta"]
    assert np.isnan(delta[:2, 2]).all() and not np.isnan(np.delete(delta, 2, 1)).any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("type_name", GRID_TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_whether_a_block_can_be_resident_is_asked_of_its_own_kernel(cell, type_name, backward, masked):
    """With the shared memory of its plan, which the kernel has to ask for; and not where there is no plan."""
    ask = load("checked", recurrence=True).module.grid_resident
    size = 2 if type_name.endswith("16") else 4
    numbers = CELLS.index(cell), [*TYPES].index(type_name), backward, masked, WIDE
    assert ask(*numbers, 132, 227 << 10, 1, 16, 1024, GATES[cell], size) == 1
    assert ask(*numbers, 132, 227 << 10, 1, 16, 64, GATES[cell], size) == 1
    assert ask(*numbers, 132, 227 << 10, 1, 10_000, 1024, GATES[cell], size) == -1
    # More than a block may ever ask for: the device says so.
    assert ask(*numbers, 4, 1 << 20, 1, 64, 1024, GATES[cell], size) == -1
