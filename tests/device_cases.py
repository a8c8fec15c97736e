"""What the tests of tests/cuda share: one layer on a device, the same in float64 on the CPU, and how far apart they
may be.

Numbers are drawn on the CPU, so that every device gets the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from op_cases import Arguments, arguments
from torch import Tensor

from fusedrnn import network
from fusedrnn.autograd import reference_layer
from fusedrnn.ops import Masks

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class Case(NamedTuple):
    """One layer in one direction."""

    cell: str
    size: tuple[int, int, int, int]  # T, B, I, H; T is 1 of one step
    dtype: torch.dtype
    batch_first: bool = False
    reverse: bool = False
    bias: bool = True
    states: str = "[B, H]"  # or "[1, B, H]", or "none" for zeros
    one_step: bool = False  # x is [B, I]
    used: tuple[str, ...] = ("y", "h_n", "c_n", "c")  # the outputs whose gradients come in
    seed: int = 0
    masks: tuple[str, ...] = ()  # "resets", "lengths", "packed" ("whole": with full steps), "detach_every", "states"
    recompute: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        lstm = ("c_n", "c") if "states" in self.masks else ("c_n",)
        return ("y", "h_n", *lstm) if self.cell == "lstm" else ("y", "h_n")

    @property
    def packed(self) -> bool:
        return "packed" in self.masks or "whole" in self.masks


class Drawn(NamedTuple):
    args: Arguments
    grads: dict[str, Tensor]


@functools.cache
def draw(case: Case) -> Drawn:
    """Arguments and incoming gradients, on the CPU."""
    T, B, I, H = case.size
    torch.manual_seed(T * 1000 + B * 100 + I * 10 + H + 10**6 * case.seed)
    args = arguments(case.cell, case.size, case.dtype, case.batch_first, case.bias)
    if case.cell == "rnn_relu" and case.dtype != torch.float64:
        args = clear_of_the_kink(args)
    masks = draw_masks(case)
    if masks.batch_sizes is not None:
        args = args._replace(x=args.x.reshape(T * B, I)[: masks.batch_sizes.sum()])
    rows = args.x.shape[:-1]
    kept = (T, B) if masks.batch_sizes is None else rows
    grads = {"y": torch.randn(*rows, H), "h_n": torch.randn(B, H), "c_n": torch.randn(B, H), "c": torch.randn(*kept, H)}
    used = {name: grad.to(case.dtype) for name, grad in grads.items() if name in case.used and name in case.outputs}
    return Drawn(args, used)


def draw_masks(case: Case) -> Masks:
    """On the CPU, the same for every seed. Entries of every length, the longest and the shortest there can be."""
    T, B, _, _ = case.size
    random = torch.Generator().manual_seed(T * 1000 + B)
    batch_sizes = lengths = None
    if case.packed:
        ends = torch.full((B,), T) if "whole" in case.masks else torch.randint(1, T + 1, (B,), generator=random)
        ends[0] = T
        batch_sizes = (torch.arange(T).unsqueeze(1) < ends).sum(1)
    if "lengths" in case.masks:
        lengths = torch.randint(T + 1, (B,), generator=random)
        lengths[-1], lengths[0] = 0, T
    rows: tuple[int, ...] = (B, T) if case.batch_first else (T, B)
    if batch_sizes is not None:
        rows = (int(batch_sizes.sum()),)
    resets = torch.rand(rows, generator=random) < 0.3
    return Masks(batch_sizes, lengths, resets if "resets" in case.masks else None, 2 * ("detach_every" in case.masks))


@functools.cache
def masks_on(case: Case, device: torch.device) -> Masks:
    """Copied once, so that a call needs no copy from the host."""
    batch_sizes, *tensors, detach_every = draw_masks(case)
    lengths, resets = (None if t is None else t.to(device) for t in tensors)
    return Masks(batch_sizes, lengths, resets, detach_every)


def clear_of_the_kink(args: Arguments) -> Arguments:
    """Half of the units far above ReLU's kink, half far below: near it, rounding decides if a gradient passes."""
    if args.b_ih is None or args.b_hh is None:
        # Positive inputs and weights have positive sums.
        return args._replace(x=args.x.abs() + 1, h0=args.h0.abs(), w_ih=args.w_ih.abs(), w_hh=args.w_hh.abs() / 2)
    sign = torch.ones_like(args.b_ih)
    sign[::2] = -1
    return args._replace(w_hh=args.w_hh / 4, b_ih=3 * sign, b_hh=args.b_hh / 8)


def leaves(tree: Any, device: str) -> Any:
    """Copies on the device that require gradients."""
    return type(tree)(*(None if t is None else t.detach().to(device).requires_grad_() for t in tree))


def states_of(case: Case, args: Arguments) -> list[Tensor]:
    return [s for s in (args.h0, args.c0) if s is not None]


Run = Callable[[Case, Arguments], tuple[Tensor, ...]]


def fused(case: Case, args: Arguments) -> tuple[Tensor, ...]:
    """y and the final states, [B, H]."""
    x = args.x.squeeze(1 if case.batch_first else 0) if case.one_step else args.x
    states: list[Tensor] | None = states_of(case, args)
    assert states is not None
    if case.states == "none":
        states = None
    elif case.states == "[1, B, H]":
        states = [s.unsqueeze(0) for s in states]
    masks = masks_on(case._replace(seed=0), args.x.device)
    options = None, case.batch_first, case.reverse, case.recompute, masks, "c" in case.outputs
    y, *last = network.layer(case.cell, x, states, args[3:], *options)
    if case.one_step:
        y = y.unsqueeze(1 if case.batch_first else 0)
    n = 2 if case.cell == "lstm" else 1
    return (y, *(s.squeeze(0) if s.dim() == 3 else s for s in last[:n]), *last[n:])


def plain(case: Case, args: Arguments) -> tuple[Tensor, ...]:
    """The same step by step."""
    states = states_of(case, args)
    if case.states == "none":
        states = [torch.zeros_like(s) for s in states]
    masks = masks_on(case._replace(seed=0), args.x.device)
    options = None, case.batch_first, case.reverse, masks, "c" in case.outputs
    return reference_layer(case.cell, args.x, states, args[3:], *options)


def results(run: Run, case: Case, args: Arguments, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, and gradients of every argument that has one."""
    out = dict(zip(case.outputs, run(case, args), strict=True))
    given = {f"d{name}": t for name, t in args._asdict().items() if t is not None}
    if case.states == "none":
        given = {name: t for name, t in given.items() if name not in ("dh0", "dc0")}
    found = torch.autograd.grad([out[n] for n in grads], list(given.values()), [*grads.values()], allow_unused=True)
    gradients = {n: g for n, g in zip(given, found, strict=True) if g is not None}
    return {**{name: t.detach() for name, t in out.items()}, **gradients}


def on_device(case: Case, device: str) -> dict[str, Tensor]:
    """Ours, on the device."""
    args, grads = draw(case)
    return results(fused, case, leaves(args, device), {name: g.to(device) for name, g in grads.items()})


@functools.cache
def exact(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """The reference's, in float64; on the CPU unless the case is too large for it."""
    args, grads = draw(case)
    wide = Arguments(*(None if t is None else t.double() for t in args))
    return results(plain, case, leaves(wide, device), {name: g.double().to(device) for name, g in grads.items()})


def limit(case: Case, name: str, tf32: bool = False) -> float:
    """How far a result may be off, in units of the largest value that it has, or of 1 if that is smaller.

    half types may round the input projection, the h that the next product reads, what is saved and the gradients of
    each step. The reference, which rounds every operation, stays below half of these limits.
    """
    if case.dtype in (torch.float64, torch.float32) and not tf32:
        return 100 * torch.finfo(case.dtype).eps
    eps = 2.0**-10 if tf32 else torch.finfo(case.dtype).eps
    if name in case.outputs:
        return 4 * eps
    return (6 if name in ("dx", "dh0", "dc0") else 12) * eps


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], case: Case, tf32: bool = False) -> None:
    assert actual.keys() == expected.keys(), case
    for name, right in expected.items():
        value = actual[name]
        assert value.shape == right.shape and value.dtype == case.dtype, (case, name, value.shape, value.dtype)
        if not right.numel():
            continue
        scale = max(1.0, right.abs().max().item())
        error = (value.to(right.device).double() - right).abs().max().item() / scale
        assert error <= limit(case, name, tf32), (
            f"{case}: {name} is off by {error:.2g}, {limit(case, name, tf32):.2g} may be"
        )


def assert_bitwise(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        assert torch.equal(actual[name], right), f"{name} differs"


def moved(tree: Any, device: str) -> Any:
    """Copies on the device, which require gradients where the originals do."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return tree.detach().to(device).requires_grad_(tree.requires_grad)
    if isinstance(tree, dict):
        return {name: moved(branch, device) for name, branch in tree.items()}
    return tuple(moved(branch, device) for branch in tree)


def finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def poison(device: str, bytes_: int = 1 << 24) -> None:
    """Leaves NaN in memory that the allocator gives out next, so that nothing may count on zeros there."""
    blocks = [torch.full((size // 4,), math.nan, device=device) for size in (bytes_, *[1 << 12] * 64, *[1 << 19] * 8)]
    del blocks
