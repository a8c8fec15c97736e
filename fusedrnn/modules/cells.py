"""LSTMCell, GRUCell and RNNCell with the constructor, parameters and results of nn.*Cell: one step a call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .scripting import NotScriptable


class _Cell(NotScriptable, nn.RNNCellBase):
    """What the three share."""

    def _check_dimensions(self, name: str, t: Tensor) -> None:
        if t.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected {name} to be 1D or 2D, got {t.dim()}D instead")

    def _weights(self) -> tuple[Any, Any, Any, Any]:
        parameters = self._parameters
        try:  # the lookup of a module's attribute is slow
            return parameters["weight_ih"], parameters["weight_hh"], parameters["bias_ih"], parameters["bias_hh"]
        except KeyError:  # parametrized ones are attributes
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class _OneStateCell(_Cell):
    def _step(self) -> Any:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        batched = input.dim() == 2
        if not batched:
            self._check_dimensions("input", input)
        if hx is not None and hx.dim() != 2:
            self._check_dimensions("hidden", hx)
        w_ih, w_hh, b_ih, b_hh = self._weights()
        if batched:
            return self._step()(input, hx, w_ih, w_hh, b_ih, b_hh)
        hx = None if hx is None else hx.unsqueeze(0)
        return self._step()(input.unsqueeze(0), hx, w_ih, w_hh, b_ih, b_hh).squeeze(0)


class LSTMCell(_Cell):
    """A drop-in for :class:`torch.nn.LSTMCell`.

    ``forward(input, hx=None)`` takes ``[B, I]`` (or ``[I]``) and ``(h, c)`` of ``[B, H]`` (or ``[H]``), zeros if None,
    and returns ``(h', c')``. float32, float64, and bfloat16 and float16 computed in float32; on the CPU.

    Raises:
        ValueError: an input or state of more than 2 dimensions.
        RuntimeError: sizes, dtypes or devices that do not fit.
        NotImplementedError: CUDA tensors where there are no CUDA kernels.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        batched = input.dim() == 2
        if not batched:
            self._check_dimensions("input", input)
        if isinstance(hx, Tensor):
            raise TypeError("LSTMCell: Expected hx to be a pair of tensors (h, c), got one tensor")
        if hx is not None:
            for i, s in enumerate(hx):
                if s.dim() != 2:
                    self._check_dimensions(f"hx[{i}]", s)
        w_ih, w_hh, b_ih, b_hh = self._weights()
        if batched:
            return functional.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
        hx = None if hx is None else tuple(s.unsqueeze(0) for s in hx)
        h, c = functional.lstm_cell(input.unsqueeze(0), hx, w_ih, w_hh, b_ih, b_hh)
        return h.squeeze(0), c.squeeze(0)


class GRUCell(_OneStateCell):
    """A drop-in for :class:`torch.nn.GRUCell`; see :class:`LSTMCell`. One state, h.

    reset_after, by name: as of :class:`fusedrnn.GRU`.
    """

    reset_after = True  # of modules pickled by an earlier version, or made from nn.* ones

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def _step(self) -> Any:
        return functional.gru_cell if self.reset_after else partial(functional.gru_cell, reset_after=False)


class RNNCell(_OneStateCell):
    """A drop-in for :class:`torch.nn.RNNCell`; see :class:`LSTMCell`. One state, h; nonlinearity "tanh" or "relu"."""

    __constants__ = [*nn.RNNCellBase.__constants__, "nonlinearity"]  # noqa: RUF012
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _step(self) -> Any:
        if self.nonlinearity == "tanh":
            return functional.rnn_tanh_cell
        if self.nonlinearity == "relu":
            return functional.rnn_relu_cell
        raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
