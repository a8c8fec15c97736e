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
"""``step(x_t, states, w_ih, w_hh, b_ih, b_hh)``: x_t ``[B, I]``, each state ``[B, H]``; returns the next states."""
Run = Callable[[Callable[[Tensor, States], States], Tensor, States], list[States]]
"""``run(step, x, states)``: the states after each step of x ``[T, B, I]``."""


def looped(step: Callable[[Tensor, States], States], x: Tensor, states: States) -> list[States]:
    """The states after each step of x ``[T, B, I]``."""
    outputs = []
    for x_t in x:
        states = step(x_t, states)
        outputs.append(states)
    return outputs


def literally(step: Callable[[Tensor, States], States], x: Tensor, states: States) -> list[States]:
    """The same with three steps written out; a longer sequence is read three by three."""
    outputs: list[States] = []
    for three in x.split(3):
        outputs += _written_out(step, three, states)
        states = outputs[-1]
    return outputs


def _written_out(step: Callable[[Tensor, States], States], x: Tensor, states: States) -> list[States]:
    first = step(x[0], states)
    if len(x) == 1:
        return [first]
    second = step(x[1], first)
    if len(x) == 2:
        return [first, second]
    third = step(x[2], second)
    return [first, second, third]


def _with_weights(step: Step, weights: Sequence[Tensor]) -> Callable[[Tensor, States], States]:
    return lambda x_t, states: step(x_t, states, *weights)


def run_steps(run: Run, step: Step, rnn: nn.RNNBase, x: Tensor, states: States | None) -> tuple[Tensor, States]:
    """Runs the stacked layers of a module with one of the functions above.

    Args:
        rnn: of one direction, time-major, with biases and without dropout: its parameters are read, it is not called.
        x: ``[T, B, I]``, T > 0.
        states: ``(h,)`` or ``(h, c)``, each ``[L, B, H]``, or None for zeros.

    Returns:
        y ``[T, B, H]`` of the last layer, and the states after the last step, each ``[L, B, H]``.
    """
    if states is None:
        zeros = x.new_zeros(rnn.num_layers, x.shape[1], rnn.hidden_size)
        states = (zeros, zeros) if rnn.mode == "LSTM" else (zeros,)
    ends: list[States] = []
    for layer, weights in enumerate(rnn.all_weights):
        outputs = run(_with_weights(step, weights), x, tuple(s[layer] for s in states))
        x = torch.stack([h for h, *_ in outputs])
        ends.append(outputs[-1])
    return x, tuple(torch.stack(s) for s in zip(*ends, strict=True))
