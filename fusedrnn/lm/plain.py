"""The layers of torch.nn with weight_drop, which they lack: what fusedrnn's are compared with."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F


class _WeightDrop(nn.RNNBase):
    """Gives a layer the weight_drop of :class:`fusedrnn.LSTM`: the same masks from the same seed, the same parameters.

    On CUDA cuDNN copies the weights at every call, and torch warns of it.
    """

    weight_drop: float

    def __init__(self, *args: Any, weight_drop: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_drop = weight_drop

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not (self.weight_drop and self.training):
            return super().forward(input, hx)
        weights: list[Any] = self._flat_weights  # the list that nn.*'s forward reads, beside the parameters
        self._flat_weights = [
            F.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
            for name, weight in zip(self._flat_weights_names, weights, strict=True)
        ]
        try:
            return super().forward(input, hx)
        finally:
            self._flat_weights = weights


class LSTM(_WeightDrop, nn.LSTM):
    """nn.LSTM with ``weight_drop=``."""


class GRU(_WeightDrop, nn.GRU):
    """nn.GRU with ``weight_drop=``."""


class RNN(_WeightDrop, nn.RNN):
    """nn.RNN with ``weight_drop=``."""
