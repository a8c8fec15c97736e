"""The LSTM with a projection, h' = W_hr (o * tanh(c')), in PyTorch's own operations, step by step.

Sak, Senior and Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
modeling" (2014).

There is no fused kernel for it: nn.LSTM loops over its steps too. torch.compile unrolls the loop, so that each length
compiles anew. The kernels of the LSTM without projection could run it, with the weight W_hh W_hr and one projection of
all outputs, but with 4 H² multiply-adds a step and row instead of 5 H P.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def layer(
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor | None],
    w_hr: Tensor,
    tokens: Tensor | None,
    batch_first: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one direction over a whole sequence, with a projection to P units.

    Args:
        x: ``[T, B, I]``, or ``[B, T, I]`` with batch_first; with tokens, the table that they pick from.
        states: ``(h, c)``, ``[1, B, P]`` and ``[1, B, H]``, or None for zeros.
        weights: w_ih ``[4H, I]``, w_hh ``[4H, P]``, b_ih and b_hh ``[4H]`` or None.
        w_hr: ``[P, H]``.

    Returns:
        y ``[T, B, P]``, h_n ``[1, B, P]`` and c_n ``[1, B, H]``.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    _check_weights(x, w_ih, w_hh, w_hr)
    if tokens is not None:
        x = F.embedding(tokens, x)
    time = 1 if batch_first else 0
    B, (P, H) = x.shape[1 - time], w_hr.shape
    if states is None:
        h, c = x.new_zeros(B, P), x.new_zeros(B, H)
    else:
        _check_states(states, B, P, H)
        h, c = (s.squeeze(0) for s in states)
    projected = F.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh).unbind(time)
    outputs = []
    for gates in reversed(projected) if reverse else projected:
        i, f, g, o = torch.addmm(gates, h, w_hh.t()).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = (o.sigmoid() * c.tanh()) @ w_hr.t()
        outputs.append(h)
    y = torch.stack(outputs[::-1] if reverse else outputs, time)
    return y, h.unsqueeze(0), c.unsqueeze(0)


def _check_weights(x: Tensor, w_ih: Tensor, w_hh: Tensor, w_hr: Tensor) -> None:
    if w_hr.dim() != 2:
        raise RuntimeError(f"Expected w_hr [P, H], got {list(w_hr.shape)}")
    P, H = w_hr.shape
    for name, weight, size in (("w_ih", w_ih, (4 * H, x.shape[-1])), ("w_hh", w_hh, (4 * H, P))):
        if weight.shape != size:
            raise RuntimeError(f"Expected {name} of shape {list(size)}, got {list(weight.shape)}")


def _check_states(states: Sequence[Tensor], B: int, P: int, H: int) -> None:
    for i, (state, size) in enumerate(zip(states, ((1, B, P), (1, B, H)), strict=True)):
        if state.shape != size:
            raise RuntimeError(f"Expected hidden[{i}] size {size}, got {list(state.shape)}")
