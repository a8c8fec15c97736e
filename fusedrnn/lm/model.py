"""A recurrent language model that remembers where in the text it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn import reference
from fusedrnn.network import operator_picks
from fusedrnn.unfused import GRU_RESET_BEFORE

from . import plain
from .regularization import embedding_dropout, locked_dropout
from .stack import LockedStack
from .truncation import Carried, truncated_bptt
from .unrolling import Step, literally, looped, run_steps

Cell = Literal["lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu"]
Backend = Literal["fused", "nn", "reference"]
Unroll = Literal["layer", "cell", "literal"]
RecurrentInit = Literal["uniform", "orthogonal", "identity"]
State = tuple[Tensor, ...]

_LIBRARIES: dict[str, Any] = {"fused": fusedrnn, "nn": nn, "reference": reference}
_LAYERS: dict[Cell, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
_CELL_LIBRARIES: dict[str, Any] = {"fused": fusedrnn.functional, "nn": torch}


class Output(NamedTuple):
    """What the model makes of B rows of T tokens."""

    logits: Tensor
    """``[B, T, V]``: scores of the next token."""
    raw: Tensor
    """``[B, T, H]``: activations of the last layer."""
    dropped: Tensor
    """``[B, T, H]``: the same after dropout."""


def _require_known(backend: Backend, cell: Cell) -> None:
    if backend not in _LIBRARIES:
        raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    if cell not in get_args(Cell):
        raise ValueError(f"cell: expected one of {get_args(Cell)}, got {cell!r}")
    if cell == "gru_reset_before" and backend == "nn":
        raise ValueError("cell: torch.nn has no gru_reset_before, expected the backend fused or reference")


def recurrent_layers(
    backend: Backend,
    cell: Cell,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    dropout: float = 0.0,
    locked: bool = False,
    weight_drop: float = 0.0,
) -> nn.RNNBase | LockedStack:
    """LSTM, GRU or RNN of fusedrnn, of torch.nn or of fusedrnn.reference: same parameters, same results.

    Raises:
        ValueError: there is no such backend or cell, the backend has no such cell, or dropout where there is one layer.
    """
    _require_known(backend, cell)
    if dropout and num_layers == 1:
        raise ValueError("layer_dropout: it is applied between layers, and there is one")
    name, options = _LAYERS[cell]
    library = _LIBRARIES[backend]
    if weight_drop:
        options = {**options, "weight_drop": weight_drop}
        library = plain if backend == "nn" else library
    make = partial(getattr(library, name), hidden_size=hidden_size, **options)
    if locked and dropout:
        return LockedStack([make(hidden_size if layer else input_size) for layer in range(num_layers)], dropout)
    return make(input_size, num_layers=num_layers, dropout=dropout)


def cell_step(backend: Backend, cell: Cell) -> Step:
    """One step of the cell: what fusedrnn.RNNCell, torch.nn.RNNCell and the like call, or fusedrnn.reference's own.

    Raises:
        ValueError: there is no such backend or cell.
    """
    _require_known(backend, cell)
    if backend == "reference":
        return reference.STEPS[cell]
    library: Any = _CELL_LIBRARIES[backend]
    if cell == "gru_reset_before":
        function = partial(library.gru_cell, reset_after=False)
    else:
        function = getattr(library, f"{cell}_cell")
    if cell == "lstm":
        return function
    return lambda x, states, *weights, **options: (
        function(x, None if states is None else states[0], *weights, **options),
    )


def _share_matrix(rnn: nn.Module) -> None:
    """Makes each layer h = f(W (x + h) + b): its two matrices one parameter, its second bias zero for good."""
    for module in rnn.modules():
        for layer in range(module.num_layers if isinstance(module, nn.RNNBase) else 0):
            setattr(module, f"weight_ih_l{layer}", getattr(module, f"weight_hh_l{layer}"))
            nn.init.zeros_(getattr(module, f"bias_hh_l{layer}").requires_grad_(False))


def _initialize_blocks(rnn: nn.Module, hidden_size: int, initialize: Callable[[Tensor], object]) -> None:
    """Draws the recurrent matrix of every gate anew."""
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            if "weight_hh" in name:
                for block in weight.split(hidden_size):
                    initialize(block)


_INITIALIZE: dict[RecurrentInit, Callable[[Tensor], object]] = {
    "orthogonal": nn.init.orthogonal_,
    "identity": nn.init.eye_,
}


class StatefulModel(nn.Module):
    """A model of token sequences that carries its state from one call to the next.

    The first call, and one with another number of rows than the last, starts from the beginning. :attr:`state` holds
    the current state, or None: a tuple of tensors whose dimension 1 is the rows. It follows the model across devices
    and dtypes and is no part of the state_dict. Gradients flow through it until :meth:`detach`: truncated
    back-propagation through time is a forward, a backward and a ``detach()`` for each batch. With ``back=k2`` gradients
    reach further than the tokens of a call, see :func:`~fusedrnn.lm.truncated_bptt`: :attr:`earlier` then holds the
    tokens ``[B, N]`` that the next call reads again, and :attr:`state` the state before them, without its gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None
        self.earlier: Tensor | None = None

    def run(self, tokens: Tensor, state: State | None = None, **options: Any) -> tuple[Output, State]:
        """Reads tokens, int64 ``[B, T]``, from a given state, or from the beginning, and leaves :attr:`state` as it is.

        Returns:
            the output and the state after the last token.
        """
        raise NotImplementedError

    def forward(self, tokens: Tensor, *, back: int | None = None, **options: Any) -> Output:
        """Reads tokens from :attr:`state`, which it then replaces.

        Args:
            tokens: int64 ``[B, T]``.
            back: how many tokens the gradients of this output reach back, at least T. None for those of this call and,
                until :meth:`detach`, all before.
            options: those of run.

        Raises:
            ValueError: back is too small, is left out in the middle of a text that was begun with it, or comes with
                options of run.
        """
        rows = self.state[0].shape[1] if self.state is not None else len(tokens)
        if rows != len(tokens) or (self.earlier is not None and len(self.earlier) != len(tokens)):
            self.reset()
        if back is None:
            if self.earlier is not None:
                raise ValueError("back: the last call had it, expected it again, or a reset() before")
            output, self.state = self.run(tokens, self.state, **options)
            return output
        if options:
            raise ValueError(f"back: expected no other option, got {', '.join(options)}")
        carried = Carried(self.earlier, self.state)
        output, (self.earlier, self.state) = truncated_bptt(self.run, tokens, carried, back=back, dim=1)
        return output

    def reset(self) -> None:
        """Forgets the text: the next call starts from the beginning."""
        self.state = self.earlier = None

    def detach(self) -> None:
        """Keeps the state and cuts its gradient: nothing flows back across this point."""
        if self.state is not None:
            self.state = tuple(s.detach() for s in self.state)

    # Not a buffer: DistributedDataParallel would overwrite every rank's state with that of the first.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StatefulModel:
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state = tuple(fn(s) for s in self.state)
        if self.earlier is not None:
            self.earlier = fn(self.earlier)
        return self


class LanguageModel(StatefulModel):
    """Embedding, recurrent layers, dropout, linear decoder; the state is carried from one call to the next.

    It starts from zeros. :attr:`state` is a tuple of ``[num_layers, B, hidden_size]``, h and for the LSTM also c.

    The layers run time-major, so that all backends draw the same dropout masks from the same seed.

    Args:
        vocabulary_size: V, the number of tokens.
        embedding_size: features of a token.
        hidden_size: H, features of a state.
        num_layers: how many recurrent layers are stacked.
        cell: "lstm", "gru", "gru_reset_before" (see reset_after of :class:`fusedrnn.GRU`), "rnn_tanh" or "rnn_relu".
        dropout: the probability of zeroing an activation of the last layer before it is decoded.
        layer_dropout: the same for the other layers, before the next one reads it.
        locked: both have one mask for all steps of a call, see :func:`~fusedrnn.lm.regularization.locked_dropout`.
        embedding_dropout: the probability of dropping a token from the input wherever it occurs in a call, see
            :func:`~fusedrnn.lm.regularization.embedding_dropout`.
        weight_drop: the probability of zeroing a recurrent weight, see :class:`fusedrnn.LSTM`.
        detach_every: no gradient passes from step t to step t - 1 of a call where this divides t, see
            :class:`fusedrnn.LSTM`; None for no such step.
        tied: the decoder's weight is the embedding's (Press and Wolf 2017, Inan et al. 2017).
        recurrent_init: of every gate's recurrent matrix: "uniform" is that of torch.nn, "orthogonal" keeps the length
            of a state (Saxe et al. 2014), "identity" the state itself (Le et al. 2015, for the ReLU RNN).
        shared_matrix: the layers of an RNN multiply input and state by the same matrix, h = f(W (x + h) + b), as one
            nn.Linear that is applied to their sum would.
        unroll: "layer" reads a sequence in one call of the layers. "cell" loops over its steps, one call of the cell
            each. "literal" has three steps written out, and reads a longer sequence three by three. Parameters and
            results are the same.
        backend: "fused" runs fusedrnn's layers, "nn" those of torch.nn, "reference" those of fusedrnn.reference.

    Raises:
        ValueError: an argument has a value that is not listed, a tied model or one with a shared matrix has two
            different sizes, the cell of a shared matrix is no RNN, there is dropout between layers where there is one,
            layer_dropout, weight_drop or detach_every where the steps are unrolled, detach_every with another backend
            than "fused", or the cell "gru_reset_before" with the backend "nn".
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
        layer_dropout: float = 0.0,
        locked: bool = False,
        embedding_dropout: float = 0.0,
        weight_drop: float = 0.0,
        detach_every: int | None = None,
        tied: bool = False,
        recurrent_init: RecurrentInit = "uniform",
        shared_matrix: bool = False,
        unroll: Unroll = "layer",
        backend: Backend = "fused",
    ) -> None:
        super().__init__()
        if tied and embedding_size != hidden_size:
            raise ValueError(f"tied: embedding_size and hidden_size must agree, got {embedding_size} and {hidden_size}")
        if shared_matrix and embedding_size != hidden_size:
            raise ValueError(
                f"shared_matrix: embedding_size and hidden_size must agree, got {embedding_size} and {hidden_size}"
            )
        if shared_matrix and not cell.startswith("rnn"):
            raise ValueError(f"shared_matrix: expected the cell rnn_tanh or rnn_relu, got {cell!r}")
        if unroll not in get_args(Unroll):
            raise ValueError(f"unroll: expected one of {get_args(Unroll)}, got {unroll!r}")
        if recurrent_init not in get_args(RecurrentInit):
            raise ValueError(f"recurrent_init: expected one of {get_args(RecurrentInit)}, got {recurrent_init!r}")
        if unroll != "layer" and (layer_dropout or weight_drop or detach_every):
            raise ValueError(
                f"unroll: {unroll!r} serves none of layer_dropout, weight_drop and detach_every, expected 'layer'"
            )
        if detach_every is not None and backend != "fused":
            raise ValueError(f"detach_every: expected the backend fused, got {backend!r}")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.rnn = recurrent_layers(
            backend,
            cell,
            embedding_size,
            hidden_size,
            num_layers,
            dropout=layer_dropout,
            locked=locked,
            weight_drop=weight_drop,
        )
        self.decoder = nn.Linear(hidden_size, vocabulary_size)
        self.dropout, self.locked, self.embedding_dropout = dropout, locked, embedding_dropout
        self.options = {} if detach_every is None else {"detach_every": detach_every}
        self.takes_tokens = backend == "fused"
        self.backend, self.cell, self.unroll = backend, cell, unroll
        if recurrent_init != "uniform":
            _initialize_blocks(self.rnn, hidden_size, _INITIALIZE[recurrent_init])
        if shared_matrix:
            _share_matrix(self.rnn)
        if tied:
            self.decoder.weight = self.embedding.weight

    def run(self, tokens: Tensor, state: State | None = None) -> tuple[Output, State]:  # type: ignore[override]
        """Reads tokens from a given state, or from zeros, and leaves :attr:`state` as it is.

        Args:
            tokens: int64 ``[B, T]``.
            state: as :attr:`state`, for B rows.

        Returns:
            the output and the state after the last token.
        """
        y, end = self._read(tokens, state)
        dropped = (locked_dropout if self.locked else F.dropout)(y, self.dropout, self.training)
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
        table = embedding_dropout(self.embedding.weight, self.embedding_dropout, self.training)
        if self.unroll != "layer":
            assert isinstance(self.rnn, nn.RNNBase)
            run = looped if self.unroll == "cell" else literally
            step = cell_step(self.backend, self.cell)
            if state is None and self.backend != "fused":  # whose cells take None for zeros
                zeros = table.new_zeros(self.rnn.num_layers, tokens.shape[0], self.rnn.hidden_size)
                state = (zeros, zeros) if self.cell == "lstm" else (zeros,)
            with_kernel = self.takes_tokens and self.cell != GRU_RESET_BEFORE
            if with_kernel and operator_picks(table, tokens.shape[0]):  # else the cells would embed them, step by step
                return run_steps(run, step, self.rnn, tokens.t(), state, table)
            return run_steps(run, step, self.rnn, F.embedding(tokens.t(), table), state)
        hx = None if state is None else state if len(state) == 2 else state[0]
        if self.takes_tokens:
            y, end = self.rnn(tokens.t(), hx, embedding=table, **self.options)
        else:
            y, end = self.rnn(F.embedding(tokens.t(), table), hx)
        return y, end if isinstance(end, tuple) else (end,)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, locked={self.locked}, tied={self.decoder.weight is self.embedding.weight}"


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
