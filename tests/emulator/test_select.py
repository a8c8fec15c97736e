"""csrc/cuda/select.h: which kernels serve a shape on devices that are not here."""

from __future__ import annotations

import pytest
from emulator.conftest import load

# Streaming multiprocessors, KiB of shared memory that a block can ask for.
DEVICES = {
    "T4": (40, 64),
    "A100": (108, 163),
    "A10": (72, 99),
    "L4": (58, 99),
    "H100": (132, 227),
    "B200": (148, 227),
    "RTX 4090": (128, 99),
}


@pytest.fixture
def module():
    return load("plain", recurrence=True).module


def select(module, device, H, gates=4, size=4, T=100, B=16, backward=False, name=None):
    sm_count, kib = DEVICES[device]
    return module.select(backward, gates, size, T, B, H, sm_count, kib * 1024, name)


# The largest hidden size of an LSTM that block serves at B 16, in float and in a half type.
LARGEST = {"T4": (63, 88), "A100": (100, 143), "A10": (78, 112), "L4": (78, 112), "H100": (120, 168)}
LARGEST |= {"B200": LARGEST["H100"], "RTX 4090": LARGEST["A10"]}


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_block_serves_what_fits_in_shared_memory(module, device, size):
    largest = max(H for H in range(1, 600) if select(module, device, H, size=size)[0] == "block")
    assert largest == LARGEST[device][size == 2]
    assert select(module, device, largest + 1, size=size) == ("step", 0, 0, "")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_block_is_within_the_limits(module, device, backward):
    sm_count, kib = DEVICES[device]
    for H in (1, 7, 32, 33, 64, 100, 128, 256, 340):
        for B in (1, 16, 256, 1024):
            name, rows, groups, _ = select(module, device, H, gates=1, size=2, B=B, backward=backward)
            if name == "step":
                continue
            assert rows in (1, 4) and groups >= 1
            assert (H + 31) // 32 * 32 * groups <= 384
            assert module.block_shared_bytes(backward, 1, 2, H, rows * groups) <= kib * 1024
            assert -(-B // (rows * groups)) <= 2 * sm_count


def test_rows_of_a_block_grow_with_the_batch(module):
    assert select(module, "T4", 32, B=40) == ("block", 1, 1, "")
    assert select(module, "T4", 32, B=41) == ("block", 1, 2, "")
    assert select(module, "T4", 32, B=40 * 17)[:3] == ("block", 4, 5)
    assert select(module, "T4", 32, B=100000)[0] == "step"


def test_one_step_and_float64_are_for_step(module):
    assert select(module, "H100", 32, T=1)[0] == "step"
    assert select(module, "H100", 32, size=8)[0] == "step"


def test_an_algorithm_by_name(module):
    assert select(module, "H100", 32, name="step") == ("step", 0, 0, "")
    assert select(module, "H100", 32, T=1, name="block")[0] == "block"
    assert select(module, "H100", 32, name="")[0] == "block"
    assert "no algorithm gird: it is one of step, block" in select(module, "H100", 32, name="gird")[3]
    assert "float64" in select(module, "H100", 32, size=8, name="block")[3]
    assert "hidden size 500" in select(module, "H100", 500, name="block")[3]
