"""What is compared: cells, shapes, and modules of nn.* and of fusedrnn that share their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fusedrnn

from ..ops import CELLS
from .measure import Comparison


class Shape(NamedTuple):
    """Rows, steps, input features and hidden units of a layer."""

    B: int
    T: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = (
    Shape(64, 16, 64, 64),
    Shape(64, 8, 42, 256),
    Shape(32, 128, 128, 128),
    Shape(20, 35, 650, 650),
    Shape(64, 70, 400, 1150),
    Shape(128, 64, 512, 512),
    Shape(1, 100, 256, 256),
)
"""Small and large language models, a time series, a wide batch, a single stream."""

LARGE = Shape(64, 70, 400, 1150)
"""The shape whose memory is measured: a layer of AWD-LSTM (Merity et al. 2018)."""

QUICK_SHAPES = tuple(s for s in SHAPES if s not in (LARGE, Shape(128, 64, 512, 512)))

TITLES = {"lstm": "LSTM", "gru": "GRU", "rnn_relu": "RNN (ReLU)", "rnn_tanh": "RNN (tanh)"}
"""Every cell by the name that the command line has for it."""


@dataclass(frozen=True)
class Plan:
    """What a run of the benchmark covers."""

    cells: tuple[str, ...]
    shapes: tuple[Shape, ...]
    threads: tuple[int, ...]
    seconds: float  # for each comparison
    least: int = 8  # rounds of each comparison
    peaks: dict[int, float] | None = None  # GFLOP/s for each number of threads


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison of the benchmark."""

    cell: str
    shape: Shape
    threads: int
    task: str
    timing: Comparison
    flops: int | None = None  # of the matrix products alone
    peak: float | None = None  # GFLOP/s that these threads can do
    tokens: int | None = None  # that one run reads or writes

    @property
    def gflops(self) -> float | None:
        """Of fusedrnn, in GFLOP/s."""
        return None if self.flops is None else self.flops / self.timing.fused_ms / 1e6

    @property
    def peak_share(self) -> float | None:
        return None if self.gflops is None or not self.peak else self.gflops / self.peak


def products(cell: str, shape: Shape) -> tuple[int, int]:
    """Floating-point operations of a forward pass: of the input's products with its weights, and of the states'."""
    B, T, I, H = shape
    rows = 2 * B * T * CELLS[cell].gates * H
    return rows * I, rows * H


def _pair(suffix: str, cell: str, sizes: tuple[int, int]) -> tuple[Any, Any]:
    name, _, nonlinearity = cell.partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    torch.manual_seed(0)
    theirs, ours = (getattr(library, name.upper() + suffix)(*sizes, **options) for library in (nn, fusedrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def layers(cell: str, shape: Shape) -> tuple[nn.RNNBase, nn.RNNBase]:
    """The layers of nn.* and of fusedrnn, with the same weights."""
    return _pair("", cell, (shape.I, shape.H))


def cells(cell: str, shape: Shape) -> tuple[nn.RNNCellBase, nn.RNNCellBase]:
    """The single-step cells of nn.* and of fusedrnn, with the same weights."""
    return _pair("Cell", cell, (shape.I, shape.H))


def sequence(shape: Shape) -> tuple[Tensor, Tensor]:
    """An input ``[T, B, I]`` and a gradient of the output ``[T, B, H]``, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    B, T, I, H = shape
    return torch.randn(T, B, I, generator=generator), torch.randn(T, B, H, generator=generator)


def inference(module: nn.RNNBase, shape: Shape) -> Callable[[], object]:
    """The call of a module in inference_mode."""
    x, _ = sequence(shape)

    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def training(module: nn.RNNBase, shape: Shape) -> Callable[[], object]:
    """The forward pass and the gradients of the input and of every parameter."""
    x, dy = sequence(shape)
    wanted = [x.requires_grad_(), *module.parameters()]
    return lambda: torch.autograd.grad(module(x)[0], wanted, dy)
