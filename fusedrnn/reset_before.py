"""The GRU whose reset gate comes before the matrix product, n = tanh(W x + U (r * h) + b), by the reference.

Cho et al. (2014) print it so, "Learning phrase representations using RNN encoder-decoder for statistical machine
translation"; cuDNN and nn.GRU have n = tanh(W x + b + r * (U h + b')).

There is no fused kernel for it: two products a step wait for each other, where the kernels have one. The products of
the inputs are one for all steps; the rest is a loop, which torch.compile unrolls, so that each length compiles anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from . import reference

GRU_RESET_BEFORE = "gru_reset_before"
"""The name of this cell beside "gru"."""


def layer(
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor | None],
    tokens: Tensor | None,
    batch_first: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """One layer in one direction over a whole sequence.

    Args:
        x: ``[T, B, I]``, or ``[B, T, I]`` with batch_first; with tokens, the table that they pick from.
        states: ``(h,)``, ``[1, B, H]``, or None for zeros.
        weights: w_ih ``[3H, I]``, w_hh ``[3H, H]``, b_ih and b_hh ``[3H]`` or None; gates r, z, n.

    Returns:
        y ``[T, B, H]`` and h_n ``[1, B, H]``.
    """
    w_ih, w_hh, *_ = weights
    assert w_ih is not None and w_hh is not None
    H = w_hh.shape[1]
    for name, weight, size in (("w_ih", w_ih, (3 * H, x.shape[-1])), ("w_hh", w_hh, (3 * H, H))):
        if weight.shape != size:
            raise RuntimeError(f"Expected {name} of shape {list(size)}, got {list(weight.shape)}")
    if tokens is not None:
        x = F.embedding(tokens, x)
    B = x.shape[0 if batch_first else 1]
    if states is None:
        h = x.new_zeros(B, H)
    else:
        if states[0].shape != (1, B, H):
            raise RuntimeError(f"Expected hidden size {(1, B, H)}, got {list(states[0].shape)}")
        h = states[0].squeeze(0)
    y, (h,) = reference.layer(GRU_RESET_BEFORE, x, (h,), weights, batch_first, reverse)
    return y, h.unsqueeze(0)
