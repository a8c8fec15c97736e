"""Layers without a kernel, by the reference, step by step: two products a step wait for each other, not one.

The LSTM with a projection, h' = W_hr (o * tanh(c')): Sak, Senior and Beaufays, "Long short-term memory recurrent neural
network architectures for large scale acoustic modeling" (2014). nn.LSTM loops over its steps too. The kernels of the
LSTM could run it, with the weight W_hh W_hr and one projection of all outputs, but with 4 H² multiply-adds a step and
row instead of 5 H P.

The GRU whose reset gate comes before the matrix product, n = tanh(W x + U (r * h) + b): Cho et al. print it so,
"Learning phrase representations using RNN encoder-decoder for statistical machine translation" (2014); cuDNN and nn.GRU
have n = tanh(W x + b + r * (U h + b')).

The products of the inputs are one for all steps. torch.compile unrolls the loop, so that each length compiles anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from .autograd import NO_MASKS, reference_layer
from .ops import Masks, check_masks

GRU_RESET_BEFORE = "gru_reset_before"
"""The name of this cell beside "gru"."""


def layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor | None],
    w_hr: Tensor | None,
    batch_first: bool,
    reverse: bool,
    recompute: bool = False,
    masks: Masks = NO_MASKS,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """One layer in one direction over a whole sequence.

    Args:
        cell: "lstm", with a projection to P units, or GRU_RESET_BEFORE, which has none: then P is H.
        x: ``[T, B, I]``, or ``[B, T, I]`` with batch_first, or packed ``[N, I]``.
        states: h ``[1, B, P]`` and, of the LSTM, c ``[1, B, H]``, or None for zeros.
        weights: of G gates, w_ih ``[G*H, I]``, w_hh ``[G*H, P]``, b_ih and b_hh ``[G*H]`` or None.
        w_hr: ``[P, H]``, or None without a projection.
        recompute: keep nothing but the arguments for backward, which runs the steps again. Not under transforms of
            torch.func, which have no hooks for it.

    Returns:
        y ``[T, B, P]``, h_n and, of the LSTM, c_n, and with return_states c of every step, time first.
    """
    P, H = _check_weights(x, weights, w_hr, 4 if cell == "lstm" else 3)
    B = _check_masks(x, masks, batch_first)
    if states is not None:
        _check_states(states, [(1, B, P), (1, B, H)][: len(states)])
    all_weights = weights if w_hr is None else (*weights, w_hr)
    args = cell, x, states, all_weights, None, batch_first, reverse, masks, return_states
    if recompute and torch.is_grad_enabled() and maybe_current_level() is None:
        return checkpoint(reference_layer, *args, use_reentrant=False, preserve_rng_state=False)
    return reference_layer(*args)


def _check_weights(x: Tensor, weights: Sequence[Tensor | None], w_hr: Tensor | None, gates: int) -> tuple[int, int]:
    """Returns P and H."""
    w_ih, w_hh, *_ = weights
    assert w_ih is not None and w_hh is not None
    if w_hr is not None and w_hr.dim() != 2:
        raise RuntimeError(f"Expected w_hr [P, H], got {list(w_hr.shape)}")
    P, H = w_hr.shape if w_hr is not None else (w_hh.shape[1], w_hh.shape[1])
    for name, weight, size in (("w_ih", w_ih, (gates * H, x.shape[-1])), ("w_hh", w_hh, (gates * H, P))):
        if weight.shape != size:
            raise RuntimeError(f"Expected {name} of shape {list(size)}, got {list(weight.shape)}")
    return P, H


def _check_states(states: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> None:
    for i, (state, size) in enumerate(zip(states, sizes, strict=True)):
        if state.shape != size:
            name = f"hidden[{i}]" if len(sizes) > 1 else "hidden"
            raise RuntimeError(f"Expected {name} size {size}, got {list(state.shape)}")


def _check_masks(x: Tensor, masks: Masks, batch_first: bool) -> int:
    """Refuses what the kernels refuse, values where they can be read, and returns B."""
    batch_sizes, lengths, resets, _ = masks
    for name, mask in (("lengths", lengths), ("resets", resets)):
        if mask is not None and mask.device != x.device:
            raise RuntimeError(f"fusedrnn: expected {name} on {x.device}, as x is, got {mask.device}")
    values_known = not is_compiling() and maybe_current_level() is None and not x.is_meta
    if batch_sizes is not None:
        check_masks(masks, x.shape[:1], 0)
        if values_known:
            _check_batch_sizes(batch_sizes.tolist(), len(x))
        return int(batch_sizes[0])
    T, B = x.shape[:2] if not batch_first else x.shape[1::-1]
    check_masks(masks, x.shape[:2], B)
    if values_known and lengths is not None:
        wrong = lengths[(lengths < 0) | (lengths > T)]
        if len(wrong):
            raise RuntimeError(f"fusedrnn: expected lengths from 0 to {T}, got {wrong[0].item()}")
    return B


def _check_batch_sizes(sizes: list[int], rows: int) -> None:
    for t, (before, size) in enumerate(pairwise(sizes[:1] + sizes)):
        if not 0 < size <= before:
            raise RuntimeError(
                f"fusedrnn: expected batch_sizes that are positive and do not increase, got {size} for step {t}"
            )
    if sum(sizes) != rows:
        raise RuntimeError(f"fusedrnn: expected batch_sizes of sum {rows}, the rows of x, got {sum(sizes)}")
