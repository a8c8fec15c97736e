"""Fused recurrent layers for PyTorch: LSTM, GRU and RNN over whole sequences, drop-in for nn.*."""

from __future__ import annotations

from pathlib import Path

import torch  # noqa: F401  its libraries must be loaded before ours

try:
    from . import _C  # noqa: F401  registers the operators
except ImportError as error:
    if any(Path(__file__).parent.glob("_C.*so")):
        raise
    raise ImportError(
        "fusedrnn was imported from its source tree, which holds no compiled kernels: "
        "run Python in another folder, or install with pip install -e ."
    ) from error

from . import functional, reference
from ._build_info import VERSION as __version__
from .convert import fuse, unfuse
from .memory import keep_memory
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "functional",
    "fuse",
    "keep_memory",
    "reference",
    "unfuse",
]
