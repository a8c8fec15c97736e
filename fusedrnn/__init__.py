"""Fused recurrent layers for PyTorch: LSTM, GRU and RNN over whole sequences, drop-in for nn.*."""

from __future__ import annotations

import torch  # noqa: F401  its libraries must be loaded before ours

from . import (
    _C,  # noqa: F401  registers the operators
    functional,
    reference,
)
from ._build_info import VERSION as __version__
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "__version__", "functional", "reference"]
