"""Trains layers and cells of every kind for minutes, with shapes that change at every step, and looks at the memory.

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --minutes 1 --device cuda

Each step draws a cell, options, sizes and dtype, trains on them, and compares every hundredth result with the reference
in float64. Exits with status 1 where a loss is not finite, a result is wrong, or the memory of the last third of the
time is more than 48 MiB above that of the second. On the CPU that is the resident memory of the process (Linux), on a
GPU what torch has allocated.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import reference

MIB = 1 << 20
ALLOWED = 48 * MIB
KINDS = ("LSTM", "GRU", "RNN")


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def meter(device: str) -> Callable[[], int]:
    """What tells the bytes in use."""
    if device != "cpu":
        return lambda: torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        sys.exit("soak: the memory of the process is read from /proc, which only Linux has")
    return resident


def train_layer(draw: random.Random, device: str, check: bool) -> Tensor:
    """A step of training on a random layer; the loss."""
    kind, I, H = draw.choice(KINDS), draw.randint(1, 96), draw.randint(1, 160)
    options = {
        "num_layers": draw.randint(1, 2),
        "bidirectional": draw.random() < 0.3,
        "batch_first": draw.random() < 0.5,
        "bias": draw.random() < 0.8,
    }
    recompute = draw.random() < 0.3
    dtype = torch.float64 if check else draw.choice([torch.float32, torch.float32, torch.bfloat16])
    module = getattr(fusedrnn, kind)(I, H, recompute=recompute, device=device, dtype=dtype, **options)
    x = torch.randn(draw.randint(1, 64), draw.randint(1, 64), I, device=device, dtype=dtype)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    y = module(x)[0]
    if check:
        exact = getattr(reference, kind)(I, H, device=device, dtype=dtype, **options)
        exact.load_state_dict(module.state_dict())
        torch.testing.assert_close(y, exact(x)[0], rtol=1e-9, atol=1e-9)
    loss = y.float().square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def train_cell(draw: random.Random, device: str) -> Tensor:
    """The same on a random cell, stepped from Python."""
    kind, I, H, B = f"{draw.choice(KINDS)}Cell", draw.randint(1, 64), draw.randint(1, 64), draw.randint(1, 32)
    cell = getattr(fusedrnn, kind)(I, H, device=device)
    state = None
    for _ in range(draw.randint(1, 12)):
        state = cell(torch.randn(B, I, device=device), state)
    h = state[0] if isinstance(state, tuple) else state
    assert h is not None
    loss = h.square().mean()
    loss.backward()
    return loss.detach()


def soak(minutes: float, device: str, seed: int, clock: Callable[[], float] = time.monotonic) -> bool:
    """Trains until the time is over, with a line every twentieth of it; whether the memory stayed flat."""
    draw, used = random.Random(seed), meter(device)
    torch.manual_seed(seed)
    start, length = clock(), 60 * minutes
    readings: list[tuple[float, int]] = []
    step, reports = 0, 0
    while (elapsed := clock() - start) < length:
        step += 1
        loss = train_cell(draw, device) if step % 4 == 0 else train_layer(draw, device, check=step % 100 == 1)
        if not loss.isfinite():
            sys.exit(f"soak: the loss of step {step} is {loss.item()} (seed {seed})")
        if elapsed * 20 >= length * reports:
            reports += 1
            gc.collect()
            readings.append((elapsed / length, used()))
            print(f"{elapsed:8.1f} s  step {step:7}  {readings[-1][1] / MIB:8.1f} MiB", flush=True)
    second = [memory for share, memory in readings if 1 / 3 <= share < 2 / 3]
    last = [memory for share, memory in readings if share >= 2 / 3]
    if not second or not last:
        sys.exit(f"soak: {minutes} minutes are too short to tell")
    growth = median(last) - median(second)
    print(f"{step} steps; from the second third to the last the memory grew by {growth / MIB:+.1f} MiB")
    return growth <= ALLOWED


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains with changing shapes for minutes and looks at the memory.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not soak(arguments.minutes, arguments.device, arguments.seed):
        sys.exit(f"soak: memory is not flat (more than {ALLOWED // MIB} MiB of growth)")


if __name__ == "__main__":
    main()
