"""What torch must know of each operator besides its kernel: the shapes of its results, and vmap.

The operators are private until 1.0. Each runs one layer in one direction over a whole sequence::

    fusedrnn::{lstm,gru,rnn_tanh,rnn_relu}(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse)
        -> (y, h_n) or, for the LSTM, (y, h_n, c_n)
    fusedrnn::{...}_saving(the same, recompute) -> (y, h_n, c_n, saved, c)
    fusedrnn::{...}_backward(dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, y, saved, c,
                             batch_first, reverse, need_x, need_w)
        -> (dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh)

The first is for inference, the second keeps what backward needs. States are ``[B, H]``, or ``[1, B, H]`` and then
returned so. Without h0 (and c0) they start from zeros and are returned as ``[1, B, H]``. x may be ``[B, I]``, one step;
then y and the states are ``[B, H]``. With tokens ``[T, B]`` (int64), x is a table ``[V, I]`` whose rows they pick. c0,
c_n and c are the LSTM's; the other cells take None and return tensors of no elements. ``recompute`` leaves the gates
out of what is saved, and backward computes them again. saved and c have time first in every layout.
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
SAVING = {cell: getattr(torch.ops.fusedrnn, f"{cell}_saving").default for cell in CELLS}
BACKWARD = {cell: getattr(torch.ops.fusedrnn, f"{cell}_backward").default for cell in CELLS}


def _define_fakes(cell: str) -> None:
    shape = CELLS[cell]

    @torch.library.register_fake(f"fusedrnn::{cell}")
    def forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse):
        devices = {t.device for t in (x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens) if t is not None}
        torch._check(len(devices) == 1, lambda: f"fusedrnn: expected all tensors on one device, got {devices}")
        rows = x if tokens is None else tokens
        one_step = tokens is None and x.dim() == 2
        dims = 3 if tokens is None else 2
        torch._check(
            one_step or x.dim() == dims, lambda: f"fusedrnn: expected x of {dims} dimensions, got {list(x.shape)}"
        )
        torch._check(w_hh.dim() == 2, lambda: f"fusedrnn: expected w_hh of 2 dimensions, got {list(w_hh.shape)}")
        hidden = w_hh.shape[1]
        batch = rows.shape[0 if one_step or batch_first else 1]
        torch._check(
            w_ih.shape[0] == shape.gates * hidden and w_ih.shape[1] == x.shape[-1],
            lambda: f"fusedrnn: expected w_ih of shape {[shape.gates * hidden, x.shape[-1]]}, got {list(w_ih.shape)}",
        )
        layers = [1] if not one_step and (h0 is None or h0.dim() == 3) else []
        state = [*layers, batch, hidden]
        torch._check(
            h0 is None or (h0.dim() == len(state) and all(a == b for a, b in zip(h0.shape, state, strict=True))),
            lambda: f"fusedrnn: expected h0 of shape {state}, got {list(h0.shape)}",
        )
        lead = rows.shape[:1] if one_step else rows.shape[:2]
        return (x.new_empty(*lead, hidden), *(x.new_empty(state) for _ in range(shape.states)))

    @torch.library.register_fake(f"fusedrnn::{cell}_saving")
    def _(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, recompute):
        y, *states = forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse)
        outer, batch = (1, y.shape[0]) if y.dim() == 2 else (y.shape[0], y.shape[1])
        steps, batch = (batch, outer) if batch_first and y.dim() == 3 else (outer, batch)
        has_c = shape.states == 2
        gates = shape.saved and not recompute
        return (
            y,
            states[0],
            states[1] if has_c else x.new_empty(0),
            x.new_empty(steps, batch, shape.saved * y.shape[-1]) if gates else x.new_empty(0),
            x.new_empty(steps, batch, y.shape[-1]) if has_c else x.new_empty(0),
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
    _define_vmap(SAVING[_cell])
    _define_vmap(BACKWARD[_cell])
