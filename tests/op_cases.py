"""What the tests of the operators share: random arguments of one layer, and the reference's answer to them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedrnn import reference
from fusedrnn.ops import BACKWARD, CELLS, SAVING

# (T, B, I, H): each of 1, 2, 3, 7, 15, 16, 17, 33 and 129 in each place, so that no size is a multiple of any tile.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 7, 15),
    (3, 2, 129, 16),
    (7, 1, 3, 17),
    (15, 7, 2, 33),
    (16, 15, 16, 3),
    (17, 16, 1, 7),
    (33, 17, 15, 2),
    (129, 2, 17, 1),
    (2, 33, 33, 129),
    (1, 129, 3, 16),
]
LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]  # batch_first, reverse

NAMES = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")


class Arguments(NamedTuple):
    """The seven tensors of a forward operator."""

    x: Tensor
    h0: Tensor
    c0: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    def given(self) -> list[Tensor]:
        return [t for t in self if t is not None]


def arguments(
    cell: str,
    size: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float64,
    batch_first: bool = False,
    bias: bool = True,
    requires_grad: bool = False,
) -> Arguments:
    T, B, I, H = size
    G = CELLS[cell].gates

    def draw(*sizes: int, scale: float = 0.5) -> Tensor:
        return (torch.randn(sizes, dtype=dtype) * scale).requires_grad_(requires_grad)

    return Arguments(
        x=draw(B, T, I) if batch_first else draw(T, B, I),
        h0=draw(B, H),
        c0=draw(B, H) if CELLS[cell].states == 2 else None,
        w_ih=draw(G * H, I, scale=I**-0.5),
        w_hh=draw(G * H, H, scale=H**-0.5),
        b_ih=draw(G * H) if bias else None,
        b_hh=draw(G * H) if bias else None,
    )


def cotangents(cell: str, args: Arguments, layout: tuple[bool, bool]) -> list[Tensor]:
    """Random gradients of y, h_n and, for the LSTM, c_n."""
    y = torch.randn(*args.x.shape[:2], args.w_hh.shape[1], dtype=args.x.dtype)
    return [y, *(torch.randn_like(args.h0) for _ in range(CELLS[cell].states))]


def fused(cell: str, args: Arguments, layout: tuple[bool, bool], grads: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients of the operators, by name."""
    with torch.no_grad():
        y, h_n, c_n, saved, c = SAVING[cell](*args, None, *layout, False)
        dc_n = grads[2] if CELLS[cell].states == 2 else None
        results = BACKWARD[cell](*grads[:2], dc_n, *args, None, y, saved, c, *layout, True, True)
    outputs = {"y": y, "h_n": h_n, **({"c_n": c_n} if CELLS[cell].states == 2 else {})}
    return outputs | {f"d{n}": g for n, g, t in zip(NAMES, results, args, strict=True) if t is not None}


def expected(cell: str, args: Arguments, layout: tuple[bool, bool], grads: list[Tensor]) -> dict[str, Tensor]:
    """The same by the reference, in float64."""
    wide = Arguments(*(None if t is None else t.detach().double().requires_grad_() for t in args))
    states = (wide.h0,) if wide.c0 is None else (wide.h0, wide.c0)
    y, last = reference.layer(cell, wide.x, states, wide[3:], *layout)
    results = torch.autograd.grad([y, *last], wide.given(), [g.double() for g in grads])
    names = [f"d{n}" for n, t in zip(NAMES, wide, strict=True) if t is not None]
    return dict(zip(("y", "h_n", "c_n"), (y.detach(), *(s.detach() for s in last)), strict=False)) | dict(
        zip(names, results, strict=True)
    )


def largest_error(actual: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, in units of its largest value (or of 1, if that is smaller)."""
    assert actual.keys() == right.keys()
    errors = {}
    for name, value in right.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            scale = max(1.0, value.abs().max().item())
            errors[name] = (actual[name].double() - value).abs().max().item() / scale
    return errors
