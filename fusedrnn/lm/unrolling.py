"""Recurrent layers run step by step: by a loop over the cell, or with the steps written out.

Both are here for what they show, that a recurrent network is one layer applied again and again (Howard and Gugger 2020,
chapter 12, whose first two models they are). Calling the layer is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

States = tuple[Tensor, ...]
Step = Callable[..., States]
"""``step(x_t, states, w_ih, w_hh, b_ih, b_hh)``: x_t ``[B, I]``, each state ``[B, H]``; returns the next states.

With ``embedding=``, a table ``[V, I]``, x_t is tokens ``[B]``. Some steps take None for states of zeros."""
_Step = Callable[[Tensor, States | None], States]
Run = Callable[[_Step, Tensor, States | None], list[States]]
"""``run(step, x, states)``: the states after each step of x ``[T, B, I]``."""


def looped(step: _Step, x: Tensor, states: States | None) -> list[States]:
    """The states after each step of x ``[T, B, I]``."""
    outputs = []
    for x_t in x:
        states = step(x_t, states)
        outputs.append(states)
    return outputs


def literally(step: _Step, x: Tensor, states: States | None) -> list[States]:
    """The same with three steps written out; a longer sequence is read three by three."""
    outputs: list[States] = []
    for three in x.split(3):
        outputs += _written_out(step, three, states)
        states = outputs[-1]
    return outputs


def _written_out(step: _Step, x: Tensor, states: States | None) -> list[States]:
    first = step(x[0], states)
    if len(x) == 1:
        return [first]
    second = step(x[1], first)
    if len(x) == 2:
        return [first, second]
    third = step(x[2], second)
    return [first, second, third]


def _with_weights(step: Step, weights: Sequence[Tensor], table: Tensor | None) -> _Step:
    options = {} if table is None else {"embedding": table}
    return lambda x_t, states: step(x_t, states, *weights, **options)


def run_steps(
    run: Run, step: Step, rnn: nn.RNNBase, x: Tensor, states: States | None, table: Tensor | None = None
) -> tuple[Tensor, States]:
    """Runs the stacked layers of a module with one of the functions above.

    Args:
        rnn: of one direction, time-major, with biases and without dropout: its parameters are read, it is not called.
        x: ``[T, B, I]``, T > 0. With a table, tokens ``[T, B]``.
        states: ``(h,)`` or ``(h, c)``, each ``[L, B, H]``, or None where the step takes None for zeros.
        table: ``[V, I]``, whose rows the tokens pick; the step takes it as ``embedding=``.

    Returns:
        y ``[T, B, H]`` of the last layer, and the states after the last step, each ``[L, B, H]``.
    """
    ends: list[States] = []
    for layer, weights in enumerate(rnn.all_weights):
        starts = None if states is None else tuple(s[layer] for s in states)
        outputs = run(_with_weights(step, weights, None if layer else table), x, starts)
        x = torch.stack([h for h, *_ in outputs])
        ends.append(outputs[-1])
    return x, tuple(torch.stack(s) for s in zip(*ends, strict=True))
