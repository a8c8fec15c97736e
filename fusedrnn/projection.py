"""The LSTM with a projection, h' = W_hr (o * tanh(c')), by the reference, step by step.

Sak, Senior and Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
modeling" (2014).

There is no fused kernel for it: nn.LSTM loops over its steps too. torch.compile unrolls the loop, so that each length
compiles anew. The kernels of the LSTM without projection could run it, with the weight W_hh W_hr and one projection of
all outputs, but with 4 H² multiply-adds a step and row instead of 5 H P.
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


def layer(
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor | None],
    w_hr: Tensor,
    batch_first: bool,
    reverse: bool,
    recompute: bool = False,
    masks: Masks = NO_MASKS,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """One layer in one direction over a whole sequence, with a projection to P units.

    Args:
        x: ``[T, B, I]``, or ``[B, T, I]`` with batch_first, or packed ``[N, I]``.
        states: ``(h, c)``, ``[1, B, P]`` and ``[1, B, H]``, or None for zeros.
        weights: w_ih ``[4H, I]``, w_hh ``[4H, P]``, b_ih and b_hh ``[4H]`` or None.
        w_hr: ``[P, H]``.
        recompute: keep nothing but the arguments for backward, which runs the steps again. Not under transforms of
            torch.func, which have no hooks for it.

    Returns:
        y ``[T, B, P]``, h_n ``[1, B, P]``, c_n ``[1, B, H]``, and with return_states c of every step, time first.
    """
    w_ih, w_hh, *_ = weights
    assert w_ih is not None and w_hh is not None
    _check_weights(x, w_ih, w_hh, w_hr)
    B = _check_masks(x, masks, batch_first)
    if states is not None:
        _check_states(states, B, *w_hr.shape)
    args = "lstm", x, states, (*weights, w_hr), None, batch_first, reverse, masks, return_states
    if recompute and torch.is_grad_enabled() and maybe_current_level() is None:
        return checkpoint(reference_layer, *args, use_reentrant=False, preserve_rng_state=False)
    return reference_layer(*args)


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
