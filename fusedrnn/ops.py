"""What torch must know of each operator besides its kernel: the shapes of its results, and vmap.

The operators are private until 1.0. Each runs one layer in one direction over a whole sequence::

    fusedrnn::{lstm,gru,rnn_tanh,rnn_relu}(x, h0, c0, w_ih, w_hh, b_ih, b_hh, batch_first, reverse, save)
        -> (y, h_n, c_n, saved, c)
    fusedrnn::{...}_backward(dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, y, saved, c,
                             batch_first, reverse, need_x, need_w)
        -> (dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh)

c0, c_n and c are the LSTM's; the other cells take None and return tensors of no elements. ``save`` asks for what
backward needs, which is of no elements otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CellShape:
    """Sizes of a cell, as in csrc/cells: gates, saved values and states per hidden unit."""

    gates: int
    saved: int
    states: int


CELLS = {
    "lstm": CellShape(gates=4, saved=4, states=2),
    "gru": CellShape(gates=3, saved=4, states=1),
    "rnn_tanh": CellShape(gates=1, saved=0, states=1),
    "rnn_relu": CellShape(gates=1, saved=0, states=1),
}
FORWARD = {cell: getattr(torch.ops.fusedrnn, cell).default for cell in CELLS}
BACKWARD = {cell: getattr(torch.ops.fusedrnn, f"{cell}_backward").default for cell in CELLS}


def _define_fakes(cell: str) -> None:
    shape = CELLS[cell]

    @torch.library.register_fake(f"fusedrnn::{cell}")
    def _(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, save, recompute):
        rows = x if tokens is None else tokens
        dims = 3 if tokens is None else 2
        torch._check(x.dim() == dims, lambda: f"fusedrnn: expected x of {dims} dimensions, got {list(x.shape)}")
        torch._check(w_hh.dim() == 2, lambda: f"fusedrnn: expected w_hh of 2 dimensions, got {list(w_hh.shape)}")
        outer, inner = rows.shape[0], rows.shape[1]
        steps, batch = (inner, outer) if batch_first else (outer, inner)
        hidden = w_hh.shape[1]
        torch._check(
            w_ih.shape[0] == shape.gates * hidden and w_ih.shape[1] == x.shape[-1],
            lambda: f"fusedrnn: expected w_ih of shape {[shape.gates * hidden, x.shape[-1]]}, got {list(w_ih.shape)}",
        )
        torch._check(
            h0.shape[0] == batch and h0.shape[1] == hidden,
            lambda: f"fusedrnn: expected h0 of shape {[batch, hidden]}, got {list(h0.shape)}",
        )
        has_c = shape.states == 2
        gates = save and not recompute and shape.saved
        return (
            x.new_empty(outer, inner, hidden),
            x.new_empty(batch, hidden),
            x.new_empty(batch, hidden) if has_c else x.new_empty(0),
            x.new_empty(steps, batch, shape.saved * hidden) if gates else x.new_empty(0),
            x.new_empty(steps, batch, hidden) if save and has_c else x.new_empty(0),
        )

    @torch.library.register_fake(f"fusedrnn::{cell}_backward")
    def _(dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, y, saved, c, batch_first, reverse, need_x, need_w):
        def like(t: Tensor | None, wanted: bool = True) -> Tensor:
            return x.new_empty(0) if t is None or not wanted else x.new_empty(t.shape)

        grads_w = [like(w, need_w) for w in (w_ih, w_hh)]
        grads_b = [like(b, need_w) for b in (b_ih, b_hh)]
        return (like(x, need_x), like(h0), like(c0), *grads_w, *grads_b)


def _define_vmap(op: Any) -> None:
    """Runs the operator once per element of the mapped dimension, which is right for every mix of mapped arguments."""

    def rule(info, in_dims, *args):
        def pick(i: int) -> list[Any]:
            return [a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)]

        results = [op(*pick(i)) for i in range(info.batch_size)]
        stacked = tuple(torch.stack(r) for r in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    torch.library.register_vmap(op, rule)


for _cell in CELLS:
    _define_fakes(_cell)
    _define_vmap(FORWARD[_cell])
    _define_vmap(BACKWARD[_cell])
