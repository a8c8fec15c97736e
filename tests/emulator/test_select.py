"""csrc/cuda/select.h: which kernels serve a shape on devices that are not here."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from emulator.conftest import load
from emulator.recurrence import GATES

# Streaming multiprocessors, KiB of shared memory that a block can ask for, compute capability.
DEVICES = {
    "T4": (40, 64, 75),
    "A100": (108, 163, 80),
    "A10": (72, 99, 86),
    "L4": (58, 99, 89),
    "H100": (132, 227, 90),
    "B200": (148, 227, 100),
    "RTX 4090": (128, 99, 89),
}
TYPES = ["float64", "float32", "tf32", "float16", "bfloat16"]  # as ValueType


class Choice(NamedTuple):
    algorithm: str
    rows_per_thread: int
    groups: int
    grid: dict[str, Any]
    error: str


@pytest.fixture
def module():
    return load("checked", recurrence=True).module


def select(
    module, device, H, cell="lstm", type="float32", T=100, B=16, backward=False, name=None, cooperative=True
) -> Choice:
    sm_count, kib, capability = DEVICES[device]
    numbers = GATES[cell], TYPES.index(type), T, B, H, sm_count, kib * 1024, capability
    return Choice(*module.select(backward, *numbers, cooperative, name))


SHORT = {"s": "step", "b": "block", "g": "grid"}
SIZES = [32, 100, 200, 512, 1024, 2048]
# Of an LSTM with 16 rows: for each size the choice forward, then backward. A record of what the estimates say, to see
# what a change of theirs changes.
CHOSEN = {
    ("T4", "float32"): "bb gg gg ss ss ss",
    ("T4", "float16"): "bb gg gg gg gg sg",
    ("T4", "bfloat16"): "bb gg gg sg ss ss",
    ("A100", "float32"): "bb bb gg gs ss ss",
    ("A100", "tf32"): "bb bb gg gg gg gg",
    ("A100", "bfloat16"): "bb gg gg gg gg gg",
    ("A10", "float32"): "bb gg gg gg ss ss",
    ("A10", "float16"): "bb bb gg gg gg gg",
    ("L4", "float32"): "bb gg gg gs ss ss",
    ("L4", "bfloat16"): "bb bb gg gg gg gg",
    ("H100", "float32"): "bb bb gg gg ss ss",
    ("H100", "tf32"): "bb bb gg gg gg gg",
    ("H100", "bfloat16"): "bb bb gg gg gg gg",
    ("B200", "float32"): "bb bb gg gg ss ss",
    ("B200", "float16"): "bb bb gg gg gg gg",
    ("RTX 4090", "float32"): "bb gg gg gs ss ss",
    ("RTX 4090", "float16"): "bb bb gg gg gg gg",
}


@pytest.mark.parametrize("device, type", CHOSEN)
def test_the_choice_for_an_lstm(module, device, type):
    chosen = [
        "".join(select(module, device, H, type=type, backward=backward).algorithm[0] for backward in (False, True))
        for H in SIZES
    ]
    assert " ".join(chosen) == CHOSEN[device, type]


# What anyone would expect: of cells, batches and lengths, on any device.
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("device", DEVICES)
def test_what_holds_on_every_device(module, device, cell, backward):
    ask = lambda H, **more: select(module, device, H, cell, backward=backward, **more).algorithm  # noqa: E731
    for type in TYPES[1:]:
        assert ask(32, type=type) == "block"
        assert ask(256, type=type, B=1) in (("grid",) if cell in ("lstm", "gru") else ("grid", "block"))
        assert ask(256, type=type, T=1) == "step"
        assert ask(4096, type=type, B=1024) == "step"
        assert ask(400, type=type, B=1, cooperative=False) == "step"
    assert ask(32, type="float64") == "step"


# The largest hidden size of an LSTM that block serves with 16 rows, in float and in a half type.
LARGEST = {"T4": (63, 88), "A100": (100, 143), "A10": (78, 112), "L4": (78, 112), "H100": (120, 168)}
LARGEST |= {"B200": LARGEST["H100"], "RTX 4090": LARGEST["A10"]}


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("device", DEVICES)
def test_block_serves_what_fits_in_shared_memory(module, device, type):
    served = [H for H in range(1, 600) if not select(module, device, H, type=type, name="block").error]
    assert served == list(range(1, LARGEST[device][type == "float16"] + 1))


@pytest.mark.parametrize("name", [None, "block", "grid"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_chosen_is_within_the_limits(module, device, cell, backward, name):
    """By name too, and of sizes that are no multiple of anything."""
    sm_count, kib, _ = DEVICES[device]
    seen = set()
    for type in ("float32", "bfloat16"):
        size, depth = 4 if type == "float32" else 2, GATES[cell] if backward else 1
        for H in (1, 7, 32, 33, 64, 100, 250, 340, 768, 1000, 3001):
            for B in (1, 16, 100, 1024, 100_000):
                made = select(module, device, H, cell, type, B=B, backward=backward, name=name)
                seen.add(made.algorithm)
                assert made.algorithm in ("step", name or made.algorithm)
                assert bool(made.error) == (name is not None and made.algorithm == "step")
                assert made.grid["fits"] == (made.algorithm == "grid")
                assert (made.rows_per_thread in (1, 4)) == (made.algorithm == "block")
                if made.algorithm == "block":
                    rows = made.rows_per_thread * made.groups
                    assert made.groups >= 1 and (H + 31) // 32 * 32 * made.groups <= 384
                    assert module.block_shared_bytes(backward, GATES[cell], size, H, rows) <= kib * 1024
                if made.algorithm == "grid":
                    plan = made.grid
                    assert 1 <= plan["teams"] * plan["blocks"] <= sm_count
                    assert (plan["teams"] - 1) * plan["rows"] < B <= plan["teams"] * plan["rows"]
                    assert (plan["blocks"] - 1) * plan["units"] < H <= plan["blocks"] * plan["units"]
                    assert plan["chunks"] * 64 >= depth * H * size
                    assert 0 <= plan["shared_slots"] <= plan["slots"]
                    assert 0 < plan["shared_bytes"] <= kib * 1024
    assert name is None or seen == {"step", name}


@pytest.mark.parametrize("device", DEVICES)
def test_small_batches_take_grid_and_large_ones_step(module, device):
    """Of a size that block does not serve. Between them, teams that fill a pass make grid cheaper now and then."""
    chosen = "".join(select(module, device, 400, type="float16", B=B).algorithm[0] for B in range(16, 1025, 16))
    assert chosen.startswith("gggg") and chosen.endswith("s" * 30) and set(chosen) == {"g", "s"}


# Of an H100, float16: plans that were measured there, and the best of the others (microseconds a step).
@pytest.mark.parametrize(
    "B, H, backward, teams",
    [
        (16, 768, False, 1),  # 3.2; in four teams 3.6
        (16, 256, True, 4),  # 3.4; in one 4.2
        (64, 256, False, 4),  # 3.0; in one 9.3
        (64, 768, False, 4),  # 5.6; in one 10.0
    ],
)
def test_teams_of_an_lstm_on_an_h100(module, B, H, backward, teams):
    assert select(module, "H100", H, type="float16", T=384, B=B, backward=backward).grid["teams"] == teams


def test_rows_of_a_block_grow_with_the_batch(module):
    ask = lambda B: select(module, "T4", 32, B=B)[:3]  # noqa: E731
    assert ask(40) == ("block", 1, 1)
    assert ask(41) == ("block", 1, 2)
    assert ask(40 * 17) == ("block", 4, 5)


def test_an_algorithm_by_name(module):
    ask = lambda H, **more: select(module, "H100", H, **more)  # noqa: E731
    assert ask(32, name="step").algorithm == "step" and not ask(32, name="step").error
    assert ask(32, name="block", T=1).algorithm == "block"
    assert ask(32, name="grid", T=1).algorithm == "grid"
    assert ask(32, name="") == ask(32)
    for name in ("step", "block", "grid"):
        for empty in ({"B": 0}, {"H": 0}):
            made = ask(**{"H": 32, **empty}, name=name)
            assert (made.algorithm, made.error) == ("step", "")


@pytest.mark.parametrize(
    "name, more, says",
    [
        ("gird", {}, "there is no algorithm gird: it is one of step, block, grid"),
        ("block", {"type": "float64"}, "the algorithm block does not run float64"),
        ("grid", {"type": "float64"}, "the algorithm grid does not run float64"),
        ("block", {"H": 500}, "hidden size 500 on this device: w_hh does not fit in the shared memory of a block"),
        ("grid", {"cooperative": False}, "does not run on this device: it does not launch cooperatively"),
        ("grid", {"H": 4096, "B": 4096}, "batch size 4096 with hidden size 4096 on this device: the states"),
    ],
)
def test_what_cannot_be_done_by_name_says_why(module, name, more, says):
    made = select(module, "H100", **{"H": 32, **more}, name=name)
    assert made.algorithm == "step" and says in made.error
