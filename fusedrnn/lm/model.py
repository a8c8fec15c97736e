"""A recurrent language model that remembers where in the text it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn import reference

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
Backend = Literal["fused", "nn", "reference"]
RecurrentInit = Literal["uniform", "orthogonal"]
State = tuple[Tensor, ...]

_LIBRARIES: dict[str, Any] = {"fused": fusedrnn, "nn": nn, "reference": reference}


class Output(NamedTuple):
    """What the model makes of B rows of T tokens."""

    logits: Tensor
    """``[B, T, V]``: scores of the next token."""
    raw: Tensor
    """``[B, T, H]``: activations of the last layer."""
    dropped: Tensor
    """``[B, T, H]``: the same after dropout."""


def recurrent_layers(backend: Backend, cell: Cell, input_size: int, hidden_size: int, num_layers: int) -> nn.RNNBase:
    """LSTM, GRU or RNN of fusedrnn, of torch.nn or of fusedrnn.reference: same parameters, same results.

    Raises:
        ValueError: there is no such backend or cell.
    """
    if backend not in _LIBRARIES:
        raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    if cell not in get_args(Cell):
        raise ValueError(f"cell: expected one of {get_args(Cell)}, got {cell!r}")
    name, _, nonlinearity = cell.partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    return getattr(_LIBRARIES[backend], name.upper())(input_size, hidden_size, num_layers, **options)


def _orthogonal_blocks(rnn: nn.RNNBase) -> None:
    """Makes the recurrent matrix of every gate orthogonal (Saxe et al. 2014), so that states keep their length."""
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            if name.startswith("weight_hh"):
                for block in weight.split(rnn.hidden_size):
                    nn.init.orthogonal_(block)


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, dropout, linear decoder; the state is carried from one call to the next.

    The first call, and one with another number of rows than the last, starts from zeros. :attr:`state` holds the
    current state, or None: a tuple of ``[num_layers, B, hidden_size]``, h and for the LSTM also c. It follows the model
    across devices and dtypes and is no part of the state_dict. Gradients flow through it until :meth:`detach`:
    truncated back-propagation through time is a forward, a backward and a ``detach()`` for each batch.

    The layers run time-major, so that all backends draw the same dropout masks from the same seed.

    Args:
        vocabulary_size: V, the number of tokens.
        embedding_size: features of a token.
        hidden_size: H, features of a state.
        num_layers: how many recurrent layers are stacked.
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        dropout: the probability of zeroing an activation of the last layer before it is decoded.
        tied: the decoder's weight is the embedding's (Press and Wolf 2017, Inan et al. 2017).
        recurrent_init: "uniform" is that of torch.nn, "orthogonal" makes every gate's recurrent matrix orthogonal.
        backend: "fused" runs fusedrnn's layers, "nn" those of torch.nn, "reference" those of fusedrnn.reference.

    Raises:
        ValueError: an argument has a value that is not listed, or a tied model has two different sizes.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        cell: Cell,
        *,
        dropout: float = 0.0,
        tied: bool = False,
        recurrent_init: RecurrentInit = "uniform",
        backend: Backend = "fused",
    ) -> None:
        super().__init__()
        if tied and embedding_size != hidden_size:
            raise ValueError(f"tied: embedding_size and hidden_size must agree, got {embedding_size} and {hidden_size}")
        if recurrent_init not in get_args(RecurrentInit):
            raise ValueError(f"recurrent_init: expected one of {get_args(RecurrentInit)}, got {recurrent_init!r}")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.rnn = recurrent_layers(backend, cell, embedding_size, hidden_size, num_layers)
        self.decoder = nn.Linear(hidden_size, vocabulary_size)
        self.dropout = dropout
        self.takes_tokens = backend == "fused"
        self.state: State | None = None
        if recurrent_init == "orthogonal":
            _orthogonal_blocks(self.rnn)
        if tied:
            self.decoder.weight = self.embedding.weight

    def run(self, tokens: Tensor, state: State | None = None) -> tuple[Output, State]:
        """Reads tokens from a given state, or from zeros, and leaves :attr:`state` as it is.

        Args:
            tokens: int64 ``[B, T]``.
            state: as :attr:`state`, for B rows.

        Returns:
            the output and the state after the last token.
        """
        y, end = self._read(tokens, state)
        dropped = F.dropout(y, self.dropout, self.training)
        raw, dropped = y.transpose(0, 1), dropped.transpose(0, 1)
        return Output(self.decoder(dropped), raw, dropped), end

    def predict(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads tokens as :meth:`run` does, for what comes next alone, and without dropout.

        Returns:
            scores ``[B, V]`` of the token after the last one, and the state after the last one.
        """
        y, end = self._read(tokens, state)
        return self.decoder(y[-1]), end

    def _read(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Activations ``[T, B, H]`` of the last layer, and the state after the last token."""
        hx = None if state is None else state if len(state) == 2 else state[0]
        if self.takes_tokens:
            y, end = self.rnn(tokens.t(), hx, embedding=self.embedding.weight)
        else:
            y, end = self.rnn(self.embedding(tokens.t()), hx)
        return y, end if isinstance(end, tuple) else (end,)

    def forward(self, tokens: Tensor) -> Output:
        """Reads tokens ``[B, T]`` (int64) from :attr:`state`, which it then replaces."""
        if self.state is not None and self.state[0].shape[1] != tokens.shape[0]:
            self.reset()
        output, self.state = self.run(tokens, self.state)
        return output

    def reset(self) -> None:
        """Forgets the text: the next call starts from zeros."""
        self.state = None

    def detach(self) -> None:
        """Keeps the state and cuts its gradient: nothing flows back across this point."""
        if self.state is not None:
            self.state = tuple(s.detach() for s in self.state)

    # Not a buffer: DistributedDataParallel would overwrite every rank's state with that of the first.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state = tuple(fn(s) for s in self.state)
        return self

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, tied={self.decoder.weight is self.embedding.weight}"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside, and no gradient is recorded; then the mode of every module is what it was."""
    # Not by eval() and train(), which take longer than a step of a small model and make all modules alike.
    training = [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
