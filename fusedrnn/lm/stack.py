"""Stacked recurrent layers with locked dropout between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .regularization import locked_dropout


class LockedStack(nn.Module):
    """Layers one by one, each a module of its own, called as one nn.LSTM, nn.GRU or nn.RNN of several layers is.

    Args:
        layers: time-major, of one layer and one direction each, the first of the input's size.
        dropout: between two layers, see :func:`~fusedrnn.lm.regularization.locked_dropout`.
    """

    def __init__(self, layers: Sequence[nn.RNNBase], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        embedding: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """Reads a sequence ``[T, B, I]``, or tokens ``[T, B]`` with embedding, from states ``[L, B, H]``."""
        x, ends = input, []
        first = {} if embedding is None else {"embedding": embedding}
        for index, layer in enumerate(self.layers):
            if index:
                x, first = locked_dropout(x, self.dropout, self.training), {}
            start = None
            if hx is not None:
                start = hx[index, None] if isinstance(hx, Tensor) else tuple(s[index, None] for s in hx)
            x, end = layer(x, start, **first, **options)
            ends.append(end)
        if isinstance(ends[0], Tensor):
            return x, torch.cat(ends)
        return x, tuple(torch.cat(s) for s in zip(*ends, strict=True))

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"
