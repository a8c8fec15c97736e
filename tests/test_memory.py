"""What the kernels keep between calls: it is used again, bounded, and given back on demand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import fusedrnn

MIB = 1 << 20


@pytest.fixture(autouse=True)
def default_limit() -> Iterator[None]:
    yield
    fusedrnn.keep_memory(256 * MIB)


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def step(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(module(x)[0].sum(), list(module.parameters())))


def test_results_are_the_same_to_the_bit_whatever_is_kept():
    module, x = fusedrnn.LSTM(32, 64), torch.randn(64, 32, 32)  # 2 MiB of gates and 0.5 MiB of c
    fusedrnn.keep_memory(0)
    expected = step(module, x)
    for limit in (0, MIB, 256 * MIB, 256 * MIB):
        fusedrnn.keep_memory(limit)
        for actual, right in zip(step(module, x), expected, strict=True):
            assert torch.equal(actual, right), limit


def test_two_graphs_that_live_at_once_do_not_share_a_buffer():
    module, x, y = fusedrnn.LSTM(32, 64), torch.randn(64, 32, 32), torch.randn(64, 32, 32)
    parameters = list(module.parameters())
    alone = step(module, x)
    first, second = module(x)[0].sum(), module(y)[0].sum()
    torch.autograd.grad(second, parameters)
    for actual, right in zip(torch.autograd.grad(first, parameters), alone, strict=True):
        assert torch.equal(actual, right)


FREE_ON_DEMAND = """
import torch, fusedrnn

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

module, x = fusedrnn.GRU(64, 256), torch.randn(32, 64, 64)  # 8 MiB of gates
torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
kept = resident()
fusedrnn.keep_memory(0)
print(kept - resident())
"""


def test_kept_buffers_are_freed_on_demand():
    # In a process of its own: malloc keeps blocks of a size once larger ones have been freed.
    freed = subprocess.run([sys.executable, "-c", FREE_ON_DEMAND], capture_output=True, text=True, check=True).stdout
    assert int(freed) > 4 * MIB


def test_memory_does_not_grow_from_step_to_step_with_changing_shapes():
    module = fusedrnn.LSTM(64, 128)
    shapes = [(T, B) for T in (20, 45, 70) for B in (16, 40)]
    for T, B in shapes:
        step(module, torch.randn(T, B, 64))
    before = resident()
    for _ in range(10):
        for T, B in shapes:
            step(module, torch.randn(T, B, 64))
    assert resident() - before < 32 * MIB


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="at least 0 bytes, got -1"):
        fusedrnn.keep_memory(-1)
