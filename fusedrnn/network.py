"""What runs behind the functions: stacked layers, one layer, one step, and the checks and casts before them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level, unwrap_if_dead
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import functional as F

from . import cuda, reference, unfused
from .autograd import FUNCTIONS, NO_MASKS, reference_layer, results_of, run_below_autograd, run_eagerly
from .ops import FORWARD, SAVING, Masks, check_masks
from .unfused import GRU_RESET_BEFORE

States = Sequence[Tensor]


def check_pair(name: str, hx: Sequence[Tensor]) -> None:
    if isinstance(hx, Tensor):
        raise TypeError(f"{name} expects two hidden states, a pair of tensors, got one tensor")
    if len(hx) != 2:
        raise RuntimeError(f"{name} expects two hidden states, got {len(hx)}")


def masks_of(
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    detach_every: int | None,
    bidirectional: bool,
) -> Masks:
    """The operators' arguments of these options."""
    if batch_sizes is None and lengths is None and resets is None and detach_every is None:
        return NO_MASKS
    for name, mask in (("batch_sizes", batch_sizes), ("lengths", lengths), ("resets", resets)):
        if not (mask is None or isinstance(mask, Tensor)):
            raise TypeError(f"Expected {name} as a tensor, got {type(mask).__name__}")
    if batch_sizes is not None and not batch_sizes.is_cpu:
        raise RuntimeError(f"Expected batch_sizes on the CPU, got {batch_sizes.device}")
    if detach_every is not None:
        detach_every = index(detach_every)
        if detach_every < 1:
            raise ValueError(f"Expected detach_every to be at least 1, got {detach_every}")
        if bidirectional:
            raise ValueError("detach_every: the gradients of a bidirectional layer cannot be truncated in one call")
    if lengths is not None and lengths.dtype != torch.int64:
        if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
            raise RuntimeError(f"Expected lengths of integers, got {lengths.dtype}")
        lengths = lengths.long()
    return Masks(batch_sizes, lengths, resets, detach_every or 0)


def run_network(
    cell: str,
    x: Tensor,
    states: States | None,
    weights: Sequence[Tensor],
    embedding: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    recompute: bool,
    masks: Masks = NO_MASKS,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """y and the final states of stacked layers, as :func:`fusedrnn.functional.lstm` has them.

    States are ``[L*D, B, H]``, or None for zeros.

    With return_states also c of the last layer, shaped as y.
    """
    batch_first = batch_first and masks.batch_sizes is None
    dims = (3 if embedding is None else 2) - (masks.batch_sizes is not None)
    if x.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {x.dim()}")
    if x.size(1 if batch_first else 0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    single = num_layers == 1 and not bidirectional and len(weights) in (2, 4) and cell != GRU_RESET_BEFORE
    each = 0 if single else _weights_each(cell, weights, 2 * num_layers if bidirectional else num_layers)
    with_kernel = each % 2 == 0 and cell != GRU_RESET_BEFORE
    if cell == "lstm" and states is not None:
        check_pair(cell, states)
    tokens = None
    if embedding is not None:
        _check_tokens(x, embedding, weights[0])
        if with_kernel and operator_picks(embedding, x.numel()):
            tokens, x = x, embedding
        else:
            if masks.lengths is not None:  # a token behind an end may be no row of the table
                check_masks(masks, x.shape, x.shape[0 if batch_first else 1])
                x = x.masked_fill(reference.ended(masks.lengths, x.shape[1 if batch_first else 0], batch_first), 0)
            x = _embedded(x, embedding)
    if not x.is_cpu or torch._C._is_any_autocast_enabled() or is_compiling():
        x, states, weights = _prepared(x, states, weights)
    try:
        if not single:
            return _stack(
                cell, x, states, weights, each, tokens, batch_first, bidirectional, dropout, recompute, masks,
                return_states,
            )  # fmt: skip
        group = weights if len(weights) == 4 else (*weights, None, None)
        results = layer(cell, x, states, group, tokens, batch_first, False, recompute, masks, return_states)
        return _with_cells(results, (results[-1],), batch_first) if return_states else results
    except RuntimeError:  # NotImplementedError is one
        _check_served(x, states, weights)
        raise


def _weights_each(cell: str, weights: Sequence[Tensor], layers: int) -> int:
    """How many weights a layer has, in one direction: an odd number where it has a projection, whose w_hr is last."""
    each, left = divmod(len(weights), max(layers, 1))
    if left or each not in ((2, 3, 4, 5) if cell == "lstm" else (2, 4)):
        raise RuntimeError(
            f"expected {2 * layers} weights, or {4 * layers} with biases, for {layers} layers and directions, "
            f"got {len(weights)}"
        )
    return each


def _with_cells(results: Sequence[Tensor], cells: Sequence[Tensor], batch_first: bool) -> tuple[Tensor, ...]:
    """results, whose last tensor becomes c of all directions, which the operators have with time first."""
    c = cells[0] if len(cells) == 1 else torch.cat(tuple(cells), -1)
    return (*results[:-1], c.transpose(0, 1) if batch_first else c)


def _stack(
    cell: str,
    x: Tensor,
    states: States | None,
    weights: Sequence[Tensor],
    each: int,
    tokens: Tensor | None,
    batch_first: bool,
    bidirectional: bool,
    dropout: float,
    recompute: bool,
    masks: Masks,
    return_states: bool,
) -> tuple[Tensor, ...]:
    """Several layers or directions, each with so many of the weights."""
    directions = 2 if bidirectional else 1
    projected = each % 2  # w_hr comes last
    groups = [(*weights[i : i + each - projected], None, None)[:4] for i in range(0, len(weights), each)]
    projections = weights[each - 1 :: each] if projected else ()
    starts: list[States | None] = [None] * len(groups)
    if states is not None:
        for s in states:
            if s.dim() != 3 or s.shape[0] != len(groups):
                raise RuntimeError(f"Expected hidden size [{len(groups)}, B, H], got {list(s.shape)}")
        starts = list(zip(*(s.split(1) for s in states), strict=True))
    ends: list[States] = []
    for first in range(0, len(groups), directions):
        if first and dropout:
            x = _dropout(x, dropout, batch_first)
        ys, cells = [], []
        with_cells = return_states and first + directions == len(groups)
        for i in range(first, first + directions):
            how = batch_first, i > first, recompute, masks, with_cells
            if projected or cell == GRU_RESET_BEFORE:
                y, *end = unfused.layer(cell, x, starts[i], groups[i], projections[i] if projected else None, *how)
            else:
                y, *end = layer(cell, x, starts[i], groups[i], tokens, *how)
            ys.append(y)
            if with_cells:
                cells.append(end.pop())
            ends.append(tuple(end))
        x, tokens = torch.cat(ys, -1) if bidirectional else ys[0], None
    results = (x, *(torch.cat(s) for s in zip(*ends, strict=True)))
    return _with_cells((*results, x), cells, batch_first) if return_states else results


def layer(
    cell: str,
    x: Tensor,
    states: States | None,
    weights: Sequence[Tensor | None],
    tokens: Tensor | None = None,
    batch_first: bool = False,
    reverse: bool = False,
    recompute: bool = False,
    masks: Masks = NO_MASKS,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """One layer in one direction: y and the final states, of shapes that :mod:`fusedrnn.ops` describes, and c if asked.

    With tokens, x is the table that they pick from.
    """
    if forward_ad._current_level >= 0:
        return reference_layer(cell, x, states, weights, tokens, batch_first, reverse, masks, return_states)
    h0, c0 = (None, None) if states is None else states if len(states) == 2 else (states[0], None)
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_hh is not None
    if is_compiling() or torch._C._get_tracing_state() is not None or maybe_current_level() is not None:
        args = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse)
        return _transformed_layer(cell, args, recompute, masks, return_states)
    if torch.is_grad_enabled() and (w_hh.requires_grad or torch._C._any_requires_grad(x, h0, c0, w_ih, b_ih, b_hh)):
        options = (cell, return_states, (tokens, batch_first, reverse, recompute, *masks))
        # A tensor that a transform has let out is what it held, as the dispatcher takes it.
        tensors = [t if t is None else unwrap_if_dead(t) for t in (x, h0, c0, w_ih, w_hh, b_ih, b_hh)]
        return run_eagerly(options, *tensors)
    op: Any = FORWARD[cell]
    last: tuple[Any, ...] = () if masks is NO_MASKS else masks[:3]
    if return_states:  # c is among what backward needs
        op, last = SAVING[cell], (True, *masks)
    args = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, tokens, batch_first, reverse, *last)
    # In inference mode nothing is recorded anyway.
    results = op._op(*args) if torch.is_inference_mode_enabled() else run_below_autograd(op, *args)
    return results_of(cell, results, True) if return_states else results


def _transformed_layer(
    cell: str, args: tuple[Any, ...], recompute: bool, masks: Masks, return_states: bool
) -> tuple[Tensor, ...]:
    """:func:`layer` while torch.compile or torch.jit.trace looks on, or inside a transform of torch.func."""
    if not is_compiling() and torch._C._get_tracing_state() is None:
        # Inside a transform of torch.func, requires_grad does not tell.
        return results_of(cell, FUNCTIONS[cell].apply(cell, *args, recompute, *masks), return_states)
    if is_compiling():
        if torch.is_grad_enabled() and _inside_transform():
            # The operator has no derivative that torch.func can trace: the loop over steps has.
            x, h0, c0, *weights, tokens, batch_first, reverse = args
            states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
            return reference_layer(cell, x, states, weights, tokens, batch_first, reverse, masks, return_states)
        # The operator is one node of the graph, and has the same backward.
        records = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if not (records or return_states):
            return FORWARD[cell](*args, *masks[:3])
    # torch.jit.trace records the same graph with and without gradients, as its check demands.
    return results_of(cell, SAVING[cell](*args, recompute, *masks), return_states)


@torch.compiler.assume_constant_result
def _inside_transform() -> bool:
    """Whether a transform of torch.func is active: requires_grad does not tell inside one."""
    return maybe_current_level() is not None


def _check_tokens(tokens: Tensor, embedding: Tensor, w_ih: Tensor | None) -> None:
    assert w_ih is not None
    if tokens.dtype != torch.int64:
        raise RuntimeError(f"Expected tokens of dtype torch.int64 with embedding, got {tokens.dtype}")
    if embedding.dim() != 2 or embedding.shape[1] != w_ih.shape[1]:
        raise RuntimeError(f"Expected embedding of shape [V, {w_ih.shape[1]}], got {list(embedding.shape)}")
    if tokens.device != embedding.device:
        raise RuntimeError(
            f"Input and embedding are not at the same device, found input tensor at {tokens.device} "
            f"and embedding at {embedding.device}"
        )


def _prepared(x: Tensor, states: States | None, weights: Sequence[Any]) -> tuple[Tensor, States | None, Sequence[Any]]:
    """The tensors as the operators take them, where a look at them cannot wait until an operator has refused them."""
    if is_compiling() or torch._C._is_any_autocast_enabled():
        x, states, weights = _autocast(x, states, weights)
    if is_compiling() or not (x.is_cpu or x.is_cuda):
        _check_served(x, states, weights)
    return x, states, weights


def _autocast(
    x: Tensor, states: States | None, weights: Sequence[Tensor | None]
) -> tuple[Tensor, States | None, list[Tensor | None]]:
    """The tensors in the dtype of autocast, as autocast itself casts them: all of floating point but float64."""
    device = x.device.type if x.device.type != "meta" else "cpu"
    if not torch.is_autocast_enabled(device):
        return x, states, list(weights)
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return (
        cast(x),
        None if states is None else tuple(cast(s) for s in states),
        [None if w is None else cast(w) for w in weights],
    )


def operator_picks(table: Tensor, count: int) -> bool:
    """Whether so many tokens go to an operator beside their table, or are embedded first.

    Forward alone projects the rows that are used, or the table, whichever are fewer; backward adds up the table's rows.
    """
    return not torch.is_grad_enabled() or table.shape[0] < count


def _embedded(tokens: Tensor, embedding: Tensor) -> Tensor:
    """F.embedding, with the operators' error for a token that is no row of the table."""
    try:
        return F.embedding(tokens, embedding)
    except IndexError:
        V = embedding.shape[0]
        wrong = tokens[(tokens < 0) | (tokens >= V)][0].item()
        raise RuntimeError(f"fusedrnn: expected tokens from 0 to {V - 1}, the rows of the table, got {wrong}") from None


def _dropout(x: Tensor, p: float, batch_first: bool) -> Tensor:
    """Dropout whose mask is drawn over [T, B, H] in either layout, so that a seed gives nn.*'s own masks."""
    if not batch_first:
        return F.dropout(x, p)
    mask = F.dropout(torch.ones_like(x.transpose(0, 1), memory_format=torch.contiguous_format), p)
    return x * mask.transpose(0, 1)


def cell_step(
    cell: str,
    x: Tensor,
    states: States | None,
    weights: Sequence[Tensor | None],
    embedding: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One step: y, which is h', and the new states, or the errors of torch's own cells.

    x is ``[B, I]``, or with embedding tokens ``[B]``, see :func:`fusedrnn.functional.lstm_cell`.
    """
    tokens = None
    if embedding is not None:
        if x.dim() != 1:
            raise RuntimeError(f"Expected tokens of shape [B] with embedding, got {list(x.shape)}")
        _check_tokens(x, embedding, weights[0])
        if cell != GRU_RESET_BEFORE and operator_picks(embedding, x.shape[0]):
            tokens, x = x, embedding
        else:
            x = _embedded(x, embedding)
    if cell == GRU_RESET_BEFORE:
        _check_cell(x, states, weights)
        w_ih, w_hh, *biases = weights
        assert w_ih is not None and w_hh is not None
        starts = (x.new_zeros(x.shape[0], w_hh.shape[1]),) if states is None else tuple(states)
        (h,) = reference.gru_reset_before_step(x, starts, w_ih, w_hh, *biases)
        return h, h
    if x.dim() != 2 or not x.is_cpu or torch._C._is_any_autocast_enabled() or is_compiling():
        if x.dim() != 2 or is_compiling():
            _check_cell(x, states, weights, tokens)
        x, states, weights = _prepared(x, states, weights)
    try:
        return layer(cell, x, states, weights, tokens)
    except RuntimeError:
        _check_cell(x, states, weights, tokens)
        _check_served(x, states, weights)
        raise


def _check_cell(
    x: Tensor, states: States | None, weights: Sequence[Tensor | None], tokens: Tensor | None = None
) -> None:
    w_ih, w_hh = weights[:2]
    assert w_ih is not None and w_hh is not None
    batch = (x if tokens is None else tokens).shape[0]
    if x.shape[1] != w_ih.shape[1]:
        raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {w_ih.shape[1]}")
    for i, s in enumerate(states or ()):
        if s.dim() != 2:
            raise RuntimeError(f"Expected 2D hidden{i} (batch x hidden_size), but got {s.dim()}D tensor")
        if s.shape[0] != batch:
            raise RuntimeError(f"Input batch size {batch} doesn't match hidden{i} batch size {s.shape[0]}")
        if s.shape[1] != w_hh.shape[1]:
            raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {s.shape[1]}, expected {w_hh.shape[1]}")


SERVED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_served(x: Tensor, states: States | None, weights: Sequence[Tensor | None]) -> None:
    """Says what is not served yet, and refuses tensors of different dtypes or devices."""
    if x.dtype not in SERVED_DTYPES:
        raise NotImplementedError(f"fusedrnn takes tensors of {', '.join(map(str, SERVED_DTYPES))}, got {x.dtype}")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise NotImplementedError(f"fusedrnn has kernels for the CPU and CUDA, got a tensor on {x.device}")
    if x.is_cuda and cuda.unavailable:
        raise NotImplementedError(f"fusedrnn has no CUDA kernels here ({cuda.unavailable}), got a tensor on {x.device}")
    for kind, tensors in (("hidden", states or ()), ("parameter", weights)):
        for t in tensors:
            if t is None:
                continue
            if t.device != x.device:
                raise RuntimeError(
                    f"Input and {kind} tensors are not at the same device, found input tensor at {x.device} "
                    f"and {kind} tensor at {t.device}"
                )
            if t.dtype != x.dtype:
                raise RuntimeError(
                    f"Input and {kind} tensors must have the same dtype, found input tensor of {x.dtype} "
                    f"and {kind} tensor of {t.dtype}"
                )
