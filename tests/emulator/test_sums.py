"""csrc/cuda/sums.cuh: gradients of the biases, against sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.recurrence import CELLS, DELTAS, GATES, TYPES
from emulator.toolchain import Unwritten

# Slots of the deltas on the side of x, in the order of its gates, and on that of w_hh: docs/cuda-kernels.md.
SIDES = {cell: ([*range(GATES[cell])], [*range(GATES[cell])]) for cell in CELLS} | {"gru": ([1, 2, 0], [1, 2, 3])}
# Rows, H: none, one, fewer than the lanes of a block, no multiple of them; two parts, the last one shorter.
SIZES = [(0, 3), (1, 1), (5, 33), (77, 40), (523, 9)]
SCHEDULES = [{"order": "forward"}, {"order": "random", "seed": 3, "preempt": 50}]


def bias_gradients(emulator, cell, type_name, delta, wanted=(True, True), **schedule):
    """db_ih and db_hh, or None where they are not wanted."""
    kind, H = TYPES[type_name], delta.shape[1] // DELTAS[cell]
    stored = kind.store(delta)
    stored.flags.writeable = False
    wide = np.float64 if type_name == "float64" else np.float32
    parts = np.zeros((emulator.module.bias_parts(len(delta)), delta.shape[1]), wide)
    results = [np.zeros(GATES[cell] * H, kind.stored) if w else None for w in wanted]
    emulator.launch(
        "run_bias_gradients",
        CELLS.index(cell),
        [*TYPES].index(type_name),
        len(delta),
        H,
        stored,
        Unwritten(parts),
        *(None if r is None else Unwritten(r) for r in results),
        **schedule,
    )
    return [None if r is None else kind.load(r) for r in results]


def drawn(cell, type_name, rows, H):
    """Deltas that the type holds."""
    kind, random = TYPES[type_name], np.random.default_rng(rows + H)
    return kind.load(kind.store(random.uniform(-1, 1, (rows, DELTAS[cell] * H))))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["order"])
@pytest.mark.parametrize("type_name", [name for name in TYPES if name != "tf32"])
@pytest.mark.parametrize("cell", CELLS)
def test_sums_of_every_size_are_of_the_right_slots(recurrence, cell, type_name, schedule):
    for rows, H in SIZES:
        delta = drawn(cell, type_name, rows, H)
        sums = delta.sum(0).reshape(DELTAS[cell], H)
        scale = np.abs(delta).sum(0).max(initial=1)
        for actual, slots in zip(
            bias_gradients(recurrence, cell, type_name, delta, **schedule), SIDES[cell], strict=True
        ):
            np.testing.assert_allclose(actual, sums[slots].ravel(), rtol=0, atol=TYPES[type_name].tolerance(1) * scale)


@pytest.mark.parametrize("cell", CELLS)
def test_one_side_alone_and_repeats_are_equal_to_the_bit(recurrence, cell):
    delta = drawn(cell, "float32", 600, 33)
    both = bias_gradients(recurrence, cell, "float32", delta)
    again = bias_gradients(recurrence, cell, "float32", delta, order="random", seed=7)
    (first, none), (nothing, second) = (
        bias_gradients(recurrence, cell, "float32", delta, wanted) for wanted in ((True, False), (False, True))
    )
    assert none is None and nothing is None
    for one, *others in ((both[0], again[0], first), (both[1], again[1], second)):
        assert all(np.array_equal(one, other) for other in others)
