"""TBPTT(k1, k2): back-propagation through the last k2 steps after every k1 steps, for any layer or model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Carried(NamedTuple):
    """What :func:`truncated_bptt` hands from one piece of a sequence to the next."""

    earlier: Tensor | None
    """The inputs that the next call reads again, None for none."""
    state: Any
    """The state before these, detached; None for the one in which the sequence begins."""


def truncated_bptt(
    read: Callable[[Tensor, Any], tuple[Any, Any]],
    inputs: Tensor,
    carried: Carried | None = None,
    *,
    back: int,
    dim: int = 0,
) -> tuple[Any, Carried]:
    """Reads the next k1 steps of a sequence so that their gradients reach ``back`` = k2 steps.

    TBPTT(k1, k2) is a call, a backward and a step of the optimizer for each piece of k1 steps::

        carried = None
        for x, target in pieces:
            y, carried = truncated_bptt(layer, x, carried, back=k2)
            loss(y, target).backward()

    As in BPTT(h; h') of Williams and Peng (1990), with h = k2 and h' = k1, and in section 2.8.6 of Sutskever (2013),
    the errors of the last k1 steps flow back through the last k2 steps. These are read again for it, with the weights
    of now, from the state that the last call met at their beginning: k2 steps of work for k1 new ones, in at most two
    calls of ``read``, each of which draws dropout masks of its own. Where k2 is k1, nothing is read twice, and this is
    to detach the state after every piece.

    Args:
        read: ``read(inputs, state)`` returns outputs and the state after them, from a state, or from None at the
            beginning: a layer such as :class:`fusedrnn.LSTM`, or the ``run`` of a :class:`~fusedrnn.lm.StatefulModel`.
            Outputs are a tensor or a tuple of tensors with the inputs' steps in dimension ``dim``; a state is a tensor
            or a tuple of tensors.
        inputs: k1 steps, in dimension ``dim``; those of earlier calls get no gradient.
        carried: what the last call returned, None at the beginning.
        back: k2, at least k1.
        dim: the dimension of time.

    Returns:
        outputs of the k1 steps, and what the next call takes.

    Raises:
        ValueError: k1 is larger than k2, or than that of the last call.
    """
    earlier, state = carried or Carried(None, None)
    steps = inputs.shape[dim]
    window = inputs if earlier is None else torch.cat((earlier, inputs), dim)
    total, keep = window.shape[dim], back - steps
    if keep < 0:
        raise ValueError(f"back: expected at least the {steps} steps of the inputs, got {back}")
    if earlier is not None and total > back:
        raise ValueError(
            f"inputs: expected at most {back - earlier.shape[dim]} steps, as in the last call, got {steps}"
        )
    advance = max(0, total - keep)
    if advance in (0, total):
        outputs, end = read(window, state)
        parts = [outputs]
        state = end if advance else state
    else:
        first, state = read(window.narrow(dim, 0, advance), state)
        second, _ = read(window.narrow(dim, advance, keep), state)
        parts = [second] if keep >= steps else [first, second]
    kept = window.narrow(dim, advance, total - advance).detach().clone() if keep else None
    return _last(parts, steps, dim), Carried(kept, _detached(state))


def _last(parts: list[Any], steps: int, dim: int) -> Any:
    """The last steps of outputs that follow one another."""
    if not isinstance(parts[0], Tensor):
        kinds = [_last(list(one), steps, dim) for one in zip(*parts, strict=True)]
        return type(parts[0])(*kinds) if hasattr(parts[0], "_fields") else tuple(kinds)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    length = whole.shape[dim]
    return whole if length == steps else whole.narrow(dim, length - steps, steps)


def _detached(state: Any) -> Any:
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.detach()
    return tuple(s.detach() for s in state)
