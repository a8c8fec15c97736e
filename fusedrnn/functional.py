"""The recurrent layers as functions: stacked layers over a sequence, and single steps.

Weights come in PyTorch's shapes and gate order (i, f, g, o for the LSTM; r, z, n for the GRU), so that the parameters
of nn.LSTM, nn.GRU and nn.RNN can be passed as they are. Tensors are float32, float64, bfloat16 or float16 (which are
computed in float32), on the CPU or a CUDA device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .network import cell_step, check_pair, masks_of, run_network
from .unfused import GRU_RESET_BEFORE

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_relu_cell", "rnn_tanh_cell"]


def lstm(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    embedding: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    detach_every: int | None = None,
    return_states: bool = False,
) -> tuple[Any, ...]:
    """Runs stacked LSTM layers over a whole sequence (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    With D = 2 when bidirectional, else 1, L layers and H hidden units:

    Args:
        input: ``[T, B, I]``, or ``[B, T, I]`` with batch_first; T > 0. With embedding: int64 tokens ``[T, B]`` or
            ``[B, T]``.
        hx: ``(h0, c0)``, each ``[L*D, B, H]``, or None for zeros.
        weights: for each layer and direction w_ih ``[4H, I]`` (``[4H, D*H]`` above the first layer), w_hh ``[4H, H]``
            and, in all of them or in none, b_ih and b_hh ``[4H]``: the order of nn.LSTM's parameters. With w_hr
            ``[P, H]`` after these, h is projected to P units: w_hh is ``[4H, P]``, h0, h_n and y
            have P in the place of H, and the layers above take D*P inputs; c keeps H. There is no kernel for it: it
            loops over the steps, as nn.LSTM does (:mod:`fusedrnn.unfused`).
        embedding: a table ``[V, I]`` whose rows the tokens pick: the same as ``input=F.embedding(tokens, embedding)``,
            but where V < T*B, on the CPU, each row is projected once, and each token's gradient is added to its row's
            before the products of backward.
        dropout: probability of zeroing each output of every layer but the last, when training.
        recompute: keep no gates for backward, which computes them again (Chen et al. 2016): less memory, more time.
        batch_sizes: of a packed sequence, as in PackedSequence: int64 ``[T]`` on the CPU. Then input is the data
            ``[N, I]`` (tokens ``[N]``), y is ``[N, D*H]``, and the states have the entries in the packed order.
        lengths: integers ``[B]`` from 0 to T, on the device of input: each entry ends after so many steps. y is zero
            after them, h_n and c_n are those of the last step, and the reversed direction begins with it. Steps that
            are over cost no time on the CPU.
        resets: bool ``[T, B]`` (``[B, T]`` with batch_first, ``[N]`` packed): the states of all layers are zeroed
            before that step, in the order in which a direction runs, and no gradient passes.
        detach_every: truncated backpropagation (Williams and Peng 1990): no gradient passes from step t to step t - 1
            where this divides t, as if the states were detached there.
        return_states: also return c of every step, of the last layer.

    Returns:
        y ``[T, B, D*H]`` (batch first where asked) and ``(h_n, c_n)``, each ``[L*D, B, H]``; with return_states also c
        ``[T, B, D*H]``, in the form of y.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit each other, for a token that is no row of the
            table and for lengths outside of 0 to T (on a GPU both are errors of the device, as in F.embedding), for
            batch_sizes that are none, and for T = 0.
        TypeError: for masks that are no tensors, and for a detach_every that is no integer.
        ValueError: for detach_every below 1, or with bidirectional.
        NotImplementedError: for tensors of dtypes other than float32, float64, bfloat16 and float16, or on devices
            other than the CPU and, where there are CUDA kernels, CUDA devices.

    Under torch.autocast all tensors but those of float64 are cast to its dtype, and so are the results.
    """
    options = num_layers, bidirectional, batch_first, dropout if training else 0.0, recompute
    masks = masks_of(batch_sizes, lengths, resets, detach_every, bidirectional)
    y, h_n, c_n, *c = run_network("lstm", input, hx, weights, embedding, *options, masks, return_states)
    return y, (h_n, c_n), *c


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    embedding: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    detach_every: int | None = None,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """Runs stacked GRU layers over a whole sequence (Cho et al. 2014, the reset gate after the matrix product).

    Arguments and errors as for :func:`lstm`, with one state h and 3H rows in each weight. Returns ``(y, h_n)``.

    With reset_after=False the reset gate comes before the matrix product, n = tanh(W x + b + U (r * h) + b'), as Cho
    et al. print it. There is no kernel for it: it loops over the steps in plain PyTorch (:mod:`fusedrnn.unfused`).
    """
    options = num_layers, bidirectional, batch_first, dropout if training else 0.0, recompute
    masks = masks_of(batch_sizes, lengths, resets, detach_every, bidirectional)
    cell = "gru" if reset_after else GRU_RESET_BEFORE
    y, h_n = run_network(cell, input, None if hx is None else (hx,), weights, embedding, *options, masks)
    return y, h_n


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    embedding: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    detach_every: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs stacked Elman layers over a whole sequence, h = nonlinearity(w_ih x + b_ih + w_hh h + b_hh).

    Arguments and errors as for :func:`lstm`, with one state h and H rows in each weight; nonlinearity is "tanh" or
    "relu", and another one raises ValueError. There are no gates to keep: recompute changes nothing.
    Returns ``(y, h_n)``.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    options = num_layers, bidirectional, batch_first, dropout if training else 0.0, recompute
    masks = masks_of(batch_sizes, lengths, resets, detach_every, bidirectional)
    y, h_n = run_network(
        f"rnn_{nonlinearity}", input, None if hx is None else (hx,), weights, embedding, *options, masks
    )
    return y, h_n


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    embedding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step. input ``[B, I]``, hx ``(h, c)`` each ``[B, H]``, or None for zeros; returns ``(h', c')``.

    With embedding, a table ``[V, I]``, input is int64 tokens ``[B]`` that pick its rows, as in :func:`lstm`. Errors as
    torch.lstm_cell, and of tokens as :func:`lstm`.
    """
    if hx is not None:
        check_pair("lstm_cell", hx)
    _, h, c = cell_step("lstm", input, hx, (w_ih, w_hh, b_ih, b_hh), embedding)
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    embedding: Tensor | None = None,
) -> Tensor:
    """One GRU step. input ``[B, I]``, hx ``[B, H]`` or None; returns h' ``[B, H]``.

    With reset_after=False as :func:`gru` has it, in plain PyTorch. Embedding as in :func:`lstm_cell`. Errors as
    torch.gru_cell.
    """
    cell = "gru" if reset_after else GRU_RESET_BEFORE
    return cell_step(cell, input, None if hx is None else (hx,), (w_ih, w_hh, b_ih, b_hh), embedding)[1]


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    embedding: Tensor | None = None,
) -> Tensor:
    """One Elman step with tanh. input ``[B, I]``, hx ``[B, H]`` or None; returns h'.

    Embedding as in :func:`lstm_cell`. Errors as torch.rnn_tanh_cell.
    """
    return cell_step("rnn_tanh", input, None if hx is None else (hx,), (w_ih, w_hh, b_ih, b_hh), embedding)[1]


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    embedding: Tensor | None = None,
) -> Tensor:
    """One Elman step with max(., 0). input ``[B, I]``, hx ``[B, H]`` or None; returns h'.

    Embedding as in :func:`lstm_cell`. Errors as torch.rnn_relu_cell.
    """
    return cell_step("rnn_relu", input, None if hx is None else (hx,), (w_ih, w_hh, b_ih, b_hh), embedding)[1]
