"""What torch must know of each operator besides its kernel: the shapes of its results, and vmap.

The operators are private until 1.0. Each runs one layer in one direction over a whole sequence::

    fusedrnn::{lstm,gru,rnn_tanh,rnn_relu}(x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse,
                                           batch_sizes, lengths, resets)
        -> (y, h_n) or, for the LSTM, (y, h_n, c_n)
    fusedrnn::{...}_saving(the same up to reverse, recompute, batch_sizes, lengths, resets, detach_every)
        -> (y, h_n, c_n, saved, c)
    fusedrnn::{...}_backward(dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, y, saved, c,
                             batch_first, reverse, need_x, need_w, batch_sizes, lengths, resets, detach_every, dc)
        -> (dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh)

The first is for inference, the second keeps what backward needs. States are ``[B, H]``, or ``[1, B, H]`` and then
returned so. Without h0 (and c0) they start from zeros and are returned as ``[1, B, H]``. x may be ``[B, I]``, one step;
then y and the states are ``[B, H]``. With tokens ``[T, B]`` (int64), or ``[B]`` of one step, x is a table ``[V, I]``
whose rows they pick. c0, c_n and c are the LSTM's; the other cells take None and return tensors of no elements.
``recompute`` leaves the gates out of what is saved, and backward computes them again. saved and c have time first in
every layout. What follows ``reverse``, ``recompute`` and ``need_w`` may be left out and is described by :class:`Masks`;
dc is the gradient of c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Masks(NamedTuple):
    """The arguments of the operators that say where sequences end and begin.

    Attributes:
        batch_sizes: of a packed sequence, as in PackedSequence: int64 ``[T]`` on the CPU. x is ``[N, I]`` (tokens
            ``[N]``), and whatever else has a row per step and entry has N of them too; batch_first means nothing.
        lengths: int64 ``[B]``, steps of each entry of padded input, 0 to T. y and c are zero after them.
        resets: bool ``[T, B]`` (``[B, T]`` with batch_first, ``[N]`` packed): the states are zeroed before that step,
            in the order in which the steps are run.
        detach_every: no gradient passes from step t to step t - 1 where this divides t; 0 for none. Not in reverse.
    """

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    detach_every: int = 0


def check_masks(masks: Masks, lead: Sequence[int], batch: int | torch.SymInt) -> None:
    """Refuses, as the kernels do, masks whose dtypes or shapes do not fit; the values are not looked at.

    Args:
        lead: the dimensions that resets must have.
        batch: B, of lengths.
    """
    batch_sizes, lengths, resets, _ = masks
    if batch_sizes is not None and lengths is not None:
        raise RuntimeError("fusedrnn: expected batch_sizes or lengths, not both")
    if batch_sizes is not None:
        _check_mask("batch_sizes", batch_sizes, torch.int64, [batch_sizes.numel()])
    if lengths is not None:
        _check_mask("lengths", lengths, torch.int64, [batch])
    if resets is not None:
        _check_mask("resets", resets, torch.bool, lead)


def _check_mask(name: str, t: Tensor, dtype: torch.dtype, size: Sequence[int | torch.SymInt]) -> None:
    # Not torch._check, whose messages torch.compile cannot trace.
    if t.dtype != dtype:
        expected, given = (str(d).removeprefix("torch.") for d in (dtype, t.dtype))
        raise RuntimeError(f"fusedrnn: expected {name} of dtype {expected}, got {given}")
    if t.dim() != len(size) or any(a != b for a, b in zip(t.shape, size, strict=True)):
        raise RuntimeError(f"fusedrnn: expected {name} of shape {list(size)}, got {list(t.shape)}")


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
    def forward(
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes=None, lengths=None, resets=None
    ):
        tensors = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, lengths, resets)
        devices = {t.device for t in tensors if t is not None}
        torch._check(len(devices) == 1, lambda: f"fusedrnn: expected all tensors on one device, got {devices}")
        rows = x if tokens is None else tokens
        packed = batch_sizes is not None
        one_step = not packed and (x.dim() == 2 if tokens is None else tokens.dim() == 1)
        dims = 3 if tokens is None and not packed and not one_step else 2
        torch._check(x.dim() == dims, lambda: f"fusedrnn: expected x of {dims} dimensions, got {list(x.shape)}")
        torch._check(w_hh.dim() == 2, lambda: f"fusedrnn: expected w_hh of 2 dimensions, got {list(w_hh.shape)}")
        hidden = w_hh.shape[1]
        if packed:
            # Not known without its values, but by the state.
            batch = torch.library.get_ctx().new_dynamic_size() if h0 is None else h0.shape[-2]
        else:
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
        lead = rows.shape[:1] if one_step or packed else rows.shape[:2]
        check_masks(Masks(batch_sizes, lengths, resets), lead, batch)
        return (x.new_empty(*lead, hidden), *(x.new_empty(state) for _ in range(shape.states)))

    @torch.library.register_fake(f"fusedrnn::{cell}_saving")
    def _(
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, recompute,
        batch_sizes=None, lengths=None, resets=None, detach_every=0,
    ):  # fmt: skip
        y, *states = forward(
            x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, batch_sizes, lengths, resets
        )
        if y.dim() == 3:
            lead = (y.shape[1], y.shape[0]) if batch_first else y.shape[:2]
        else:
            lead = y.shape[:1] if batch_sizes is not None else (1, y.shape[0])
        has_c = shape.states == 2
        gates = shape.saved and not recompute
        return (
            y,
            states[0],
            states[1] if has_c else x.new_empty(0),
            x.new_empty(*lead, shape.saved * y.shape[-1]) if gates else x.new_empty(0),
            x.new_empty(*lead, y.shape[-1]) if has_c else x.new_empty(0),
        )

    @torch.library.register_fake(f"fusedrnn::{cell}_backward")
    def _(
        dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, y, saved, c, batch_first, reverse, need_x, need_w,
        batch_sizes=None, lengths=None, resets=None, detach_every=0, dc=None,
    ):  # fmt: skip
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
