"""A program for test_threads.py: layers in child processes, after this one has used its threads.

    processes.py fork | spawn | loader-fork | loader-spawn | alone THREADS

Fails unless every child computes what this process does on one thread; `alone` has no children and prints a digest.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys

import torch

import fusedrnn

# Rows are split over threads in the first, hidden units in the second.
SIZES = [(6, 96, 8, 64), (9, 3, 16, 200)]


def numbers(index: int) -> list[float]:
    """Outputs and gradients of one layer."""
    T, B, I, H = SIZES[index % len(SIZES)]
    torch.manual_seed(index)
    layer = (fusedrnn.LSTM, fusedrnn.GRU)[index // len(SIZES) % 2](I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    y = layer(x)[0]
    dx, dw = torch.autograd.grad(y.sin().sum(), [x, layer.weight_hh_l0])
    return [*y.flatten().tolist(), *dx.flatten().tolist(), *dw.flatten()[:1000].tolist()]


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[float]:
        assert torch.get_num_threads() == 1  # which is what makes a forked worker safe
        return numbers(index)


def in_child(index: int) -> list[float]:
    # What torch's own workers do: OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    return numbers(index)


def main(what: str, threads: int = 3) -> None:
    torch.set_num_threads(1)
    expected = [numbers(i) for i in range(8)]
    torch.set_num_threads(threads)
    for _ in range(3):
        assert all(close(numbers(i), right) for i, right in enumerate(expected))
    if what == "alone":
        print(hashlib.sha256(repr(expected).encode()).hexdigest())
        return
    method = what.split("-")[-1]
    if what.startswith("loader"):
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=None, num_workers=2, multiprocessing_context=method)
        found = list(loader)
    else:
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map(in_child, range(8))
    for index, (child, right) in enumerate(zip(found, expected, strict=True)):
        assert child == right, f"{what}: a child computed other numbers for layer {index}"
    assert all(close(numbers(i), right) for i, right in enumerate(expected)), "the parent, afterwards"


def close(a: list[float], b: list[float]) -> bool:
    return bool(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
