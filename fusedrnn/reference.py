"""The cells in plain PyTorch, one step at a time: what every kernel is compared with.

Nothing here is fast, and nothing here imports the rest of the package. Every function is made of differentiable torch
operators, so that it serves as the oracle of the tests, as the path of second derivatives and as the ``reference``
backend of the language models.

Shapes: ``x`` is ``[T, B, I]`` (``[B, T, I]`` with ``batch_first``), a state is ``[B, H]``, ``w_ih`` is ``[G*H, I]``,
``w_hh`` is ``[G*H, H]`` and the biases are ``[G*H]`` or None. Gate order is PyTorch's: i, f, g, o for the LSTM and
r, z, n for the GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

States = tuple[Tensor, ...]


def _projected(x: Tensor, w_ih: Tensor | None, b_ih: Tensor | None) -> Tensor:
    """W_ih x + b_ih; x is that already where w_ih is None."""
    return x if w_ih is None else F.linear(x, w_ih, b_ih)


def lstm_step(x: Tensor, states: States, w_ih: Tensor | None, w_hh: Tensor, b_ih=None, b_hh=None, w_hr=None) -> States:
    """One LSTM step (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid(.), g = tanh(.), c' = f * c + i * g, h' = o * tanh(c'). Returns ``(h', c')``.
    With w_hr ``[P, H]``, h' is projected to P units (Sak et al. 2014).
    """
    h, c = states
    i, f, g, o = (_projected(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    h = o.sigmoid() * c.tanh()
    return h if w_hr is None else F.linear(h, w_hr), c


def gru_step(x: Tensor, states: States, w_ih: Tensor | None, w_hh: Tensor, b_ih=None, b_hh=None) -> States:
    """One GRU step (Cho et al. 2014), reset after the matrix product as in cuDNN and nn.GRU.

    n = tanh(x_n + r * (W_hn h + b_hn)), h' = (1 - z) * n + z * h. Returns ``(h',)``.
    """
    (h,) = states
    x_r, x_z, x_n = _projected(x, w_ih, b_ih).chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return (n + z * (h - n),)


def gru_reset_before_step(x: Tensor, states: States, w_ih: Tensor | None, w_hh: Tensor, b_ih=None, b_hh=None) -> States:
    """One GRU step with the reset before the matrix product, as Cho et al. (2014) print it.

    n = tanh(x_n + W_hn (r * h) + b_hn), and the rest of :func:`gru_step`. Returns ``(h',)``.
    """
    (h,) = states
    sizes = (2 * h.shape[-1], h.shape[-1])
    x_rz, x_n = _projected(x, w_ih, b_ih).split(sizes, -1)
    w_rz, w_n = w_hh.split(sizes)
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split(sizes)
    r, z = (x_rz + F.linear(h, w_rz, b_rz)).sigmoid().chunk(2, -1)
    n = (x_n + F.linear(r * h, w_n, b_n)).tanh()
    return (n + z * (h - n),)


def rnn_tanh_step(x: Tensor, states: States, w_ih: Tensor | None, w_hh: Tensor, b_ih=None, b_hh=None) -> States:
    """One Elman step, h' = tanh(W_ih x + b_ih + W_hh h + b_hh). Returns ``(h',)``."""
    return ((_projected(x, w_ih, b_ih) + F.linear(states[0], w_hh, b_hh)).tanh(),)


def rnn_relu_step(x: Tensor, states: States, w_ih: Tensor | None, w_hh: Tensor, b_ih=None, b_hh=None) -> States:
    """One Elman step with max(., 0) in the place of tanh. Returns ``(h',)``."""
    return ((_projected(x, w_ih, b_ih) + F.linear(states[0], w_hh, b_hh)).relu(),)


STEPS: dict[str, Callable[..., States]] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
}


def unroll(
    cell: str,
    x: Tensor,
    states: States,
    weights: Sequence[Tensor | None],
    batch_first: bool = False,
    reverse: bool = False,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int = 0,
) -> tuple[States, States]:
    """Runs one layer in one direction over a whole sequence.

    Args:
        cell: a key of :data:`STEPS`.
        x: ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``.
        states: ``(h,)`` or ``(h, c)``, each ``[B, H]``.
        weights: ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)``; with w_hr after these for an LSTM with a projection.
        reverse: run from the last step to the first; outputs keep their place.
        resets: bool ``[T, B]`` (``[B, T]``): the states are zeroed before that step, in the order of running.
        lengths: integers ``[B]``: only the first steps of each entry are run; outputs are zero after them.
        detach_every: the states are detached before each step but the first that this divides.

    Returns:
        The states of every step, in the layout of x, and those after the last step that was run.
    """
    step = STEPS[cell]
    time = 1 if batch_first else 0
    if lengths is not None:  # what lies behind an end is not read: it may be NaN
        x = x.masked_fill(ended(lengths, x.shape[time], batch_first).unsqueeze(-1), 0)
    w_ih, w_hh, b_ih, b_hh, *w_hr = weights if len(weights) > 2 else (*weights, None, None)
    rows = _projected(x.flatten(0, 1), w_ih, b_ih).unflatten(0, x.shape[:2]).unbind(time)
    outputs: list[States] = []
    for t in reversed(range(len(rows))) if reverse else range(len(rows)):
        runs = None if lengths is None else (lengths > t).unsqueeze(1)
        before = states
        if detach_every and t and t % detach_every == 0:
            before = tuple(s.detach() for s in before)
        if resets is not None:
            zeroed = resets.select(time, t).unsqueeze(1)
            before = tuple(s.masked_fill(zeroed, 0) for s in before)
        after = step(rows[t], before, None, w_hh, None, b_hh, *w_hr)
        if runs is None:
            states = after
            outputs.append(after)
        else:
            states = tuple(torch.where(runs, a, s) for a, s in zip(after, states, strict=True))
            outputs.append(tuple(a.masked_fill(~runs, 0) for a in after))
    if not outputs:
        return tuple(x.new_empty((*x.shape[:2], s.shape[-1])) for s in states), states
    ordered = outputs[::-1] if reverse else outputs
    return tuple(torch.stack(s, time) for s in zip(*ordered, strict=True)), states


def layer(
    cell: str,
    x: Tensor,
    states: States,
    weights: Sequence[Tensor | None],
    batch_first: bool = False,
    reverse: bool = False,
    **masks,
) -> tuple[Tensor, States]:
    """:func:`unroll`, but returns of the states of every step ``y`` alone, which is h."""
    outputs, states = unroll(cell, x, states, weights, batch_first, reverse, **masks)
    return outputs[0], states


def ended(lengths: Tensor, steps: int, batch_first: bool) -> Tensor:
    """Which steps of each entry come after its end: bool ``[T, B]``, or ``[B, T]`` with ``batch_first``."""
    over = torch.arange(steps, device=lengths.device) >= lengths.unsqueeze(1)
    return over if batch_first else over.T


def packed_places(batch_sizes: Tensor, rows: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How a packed sequence of N rows (as in PackedSequence) and a padded one of ``[T, B]`` belong together.

    Returns:
        The lengths ``[B]``; for each packed row its padded one, ``[N]``, counted through the steps; and for each padded
        row its packed one, ``[T, B]``, which is 0 where there is none.
    """
    ends = batch_sizes.cumsum(0)
    starts = ends - batch_sizes
    row, entry = torch.arange(rows), torch.arange(batch)
    step = torch.searchsorted(ends, row, right=True)
    place = step * batch + row - starts[step]
    there = entry < batch_sizes.unsqueeze(1)
    packed = (starts.unsqueeze(1) + entry).where(there, 0)
    return there.sum(0).to(device), place.to(device), packed.to(device)


def network(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor | None]],
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    resets: Tensor | None = None,
    return_states: bool = False,
    **masks,
) -> tuple[Any, ...]:
    """Stacked layers, as nn.LSTM, nn.GRU and nn.RNN stack them; ``resets`` and masks are :func:`unroll`'s.

    Args:
        states: ``(h,)`` or ``(h, c)``, each ``[L*D, B, H]``.
        weights: one sequence per layer and direction, in the order of ``nn.LSTM.all_weights``.
        dropout: probability of zeroing an output of every layer but the last, when ``training``.

    Returns:
        ``y`` ``[T, B, D*H]`` (batch first where asked) and the final states, each ``[L*D, B, H]``; for an LSTM with
        ``return_states`` also c of every step of the last layer, shaped as y.
    """
    directions = 2 if bidirectional else 1
    last: list[States] = []
    if batch_first:  # as nn.* does, so that dropout draws the same masks in either layout
        x, resets = x.transpose(0, 1), None if resets is None else resets.T
    for first in range(0, len(weights), directions):
        if first and training and dropout:
            x = F.dropout(x, dropout)
        outputs: list[States] = []
        for d in range(directions):
            start = tuple(s[first + d] for s in states)
            steps, end = unroll(cell, x, start, weights[first + d], reverse=d == 1, resets=resets, **masks)
            outputs.append(steps)
            last.append(end)
        x, *cells = (torch.cat(s, -1) for s in zip(*outputs, strict=True))
    if batch_first:
        x, *cells = (s.transpose(0, 1) for s in (x, *cells))
    return x, tuple(torch.stack(s) for s in zip(*last, strict=True)), *(cells if return_states else ())


class _Reference(nn.RNNBase):
    """Constructor, parameters and checks of nn.*, with the forward pass of this file.

    weight_drop: the probability of zeroing each element of w_hh in training, one draw a call, scaled by 1 / (1 - p).
    """

    def __init__(self, *args, weight_drop: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight_drop = weight_drop
        self.cell = self.mode.lower()

    def forward(self, input: Tensor, hx=None):
        """Batched input ``[T, B, I]`` (``[B, T, I]`` with batch_first); returns what nn.LSTM, nn.GRU or nn.RNN does."""
        count = 2 if self.mode == "LSTM" else 1
        if hx is None:
            batch = input.shape[0 if self.batch_first else 1]
            size = (self.num_layers * (2 if self.bidirectional else 1), batch)
            widths = (self.proj_size or self.hidden_size, self.hidden_size)[:count]
            states = tuple(input.new_zeros(*size, width) for width in widths)
        else:
            states = tuple(hx) if count == 2 else (hx,)
        y, out = network(
            self.cell,
            input,
            states,
            [self._group(*group) for group in self.all_weights],
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
        )
        return y, (out if count == 2 else out[0])

    def _group(self, w_ih: Tensor, w_hh: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        """The weights of one layer and direction in the order of :func:`lstm_step`, w_hh after weight_drop."""
        biases = (None, None) if len(others) == 1 else ()
        return w_ih, F.dropout(w_hh, self.weight_drop, self.training), *biases, *others


class LSTM(_Reference):
    """nn.LSTM's constructor and results, computed step by step."""

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)


class GRU(_Reference):
    """nn.GRU's constructor and results, computed step by step; reset_after=False: the reset before the product."""

    def __init__(self, *args, reset_after: bool = True, **kwargs):
        super().__init__("GRU", *args, **kwargs)
        if not reset_after:
            self.cell = "gru_reset_before"


class RNN(_Reference):
    """nn.RNN's constructor and results, computed step by step."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", **kwargs):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, **kwargs)
