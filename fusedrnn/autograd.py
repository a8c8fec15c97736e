"""Gradients of the operators.

The backward formula is written once. It is registered on the operators, for torch.compile and torch.export, and used by
the autograd Functions, which eager code calls because they also work under torch.func's transforms. First derivatives
always run the fused backward operator; the derivative of that operator goes through ``reference``.

Forward mode is not here: torch takes what a Function's jvp returns for a constant, so that a derivative of it would be
silently wrong. ``functional`` runs ``reference`` instead wherever forward mode is active.

Backpropagation through time: Werbos, "Backpropagation through time: what it does and how to do it" (1990).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .ops import BACKWARD, CELLS, FORWARD, SAVING, Masks

TensorOrNone = Tensor | None

NO_MASKS = Masks()

# Arguments of a saving operator: seven tensors that have gradients (some None), tokens, then batch_first, reverse,
# recompute and masks.
_TENSORS, _OTHERS = 7, 4 + len(Masks._fields)
# Of a backward operator: three gradients, the seven tensors, tokens, y, saved, c, batch_first, reverse, need_x, need_w;
# then masks and dc.
_WITHOUT_MASKS = 3 + _TENSORS + 8
# Saved of a layer: the seven tensors, tokens, y, saved, c; then the masks that are tensors.
_SAVED_WITHOUT_MASKS = _TENSORS + 4


def _save(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    y, _, _, saved, c = output
    ctx.save_for_backward(*inputs[: _TENSORS + 1], y, saved, c, *inputs[_TENSORS + 4 : -1])
    ctx.layout = (*inputs[_TENSORS + 1 : _TENSORS + 3], inputs[-1])  # batch_first, reverse, detach_every
    ctx.set_materialize_grads(False)


def _setup_context(cell: str, ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    _save(ctx, (*inputs, *NO_MASKS[len(inputs) - _TENSORS - 4 :]), output)
    _, _, c_n, saved, c = output
    ctx.mark_non_differentiable(*((saved,) if CELLS[cell].states == 2 else (c_n, saved, c)))


def _backward(
    cell: str,
    run: Callable[..., Sequence[Tensor]],
    ctx: Any,
    needed: Sequence[bool],
    dy: TensorOrNone,
    dh_n: TensorOrNone,
    dc_n: TensorOrNone,
    dc: TensorOrNone,
) -> list[TensorOrNone]:
    """Gradients for the seven tensors of the saving operator; ``needed`` says which of them are asked for.

    ``run(cell, ...)`` calls the backward operator; the gradients are those of the saving operator's results.
    """
    if dy is None and dh_n is None and dc_n is None and dc is None:
        return [None] * _TENSORS
    kept = ctx.saved_tensors
    batch_first, reverse, detach_every = ctx.layout
    results = run(
        cell, dy, dh_n, dc_n, *kept[:_SAVED_WITHOUT_MASKS], batch_first, reverse, needed[0], True in needed[3:],
        *kept[_SAVED_WITHOUT_MASKS:], detach_every, dc,
    )  # fmt: skip
    return [g if n else None for g, n in zip(results, needed, strict=True)]


def _vjp(function: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], Any]]:
    """torch.func.vjp, which nests in torch.func's transforms as well as in torch.autograd."""
    values, pull = torch.func.vjp(function, *primals)[:2]
    return values, pull


def _outputs(
    cell: str,
    inputs: Sequence[TensorOrNone],
    tokens: TensorOrNone,
    masks: Masks,
    batch_first: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """``(y, h_n)`` or ``(y, h_n, c_n, c)`` in plain PyTorch, from the seven tensors of a saving operator and tokens."""
    x, h0, c0, *weights = inputs
    assert x is not None
    states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
    return reference_layer(cell, x, states, weights, tokens, batch_first, reverse, masks, return_states=True)


def reference_layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[TensorOrNone],
    tokens: TensorOrNone,
    batch_first: bool,
    reverse: bool,
    masks: Masks = NO_MASKS,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """What an operator returns of y, the final states and, where asked for, c of every step, in plain PyTorch.

    With w_hr after the other weights h is projected, and "gru_reset_before" is a cell: no operator does either.
    """
    batch_sizes, lengths, resets, detach_every = masks
    if tokens is not None:
        if lengths is not None:  # a token behind an end may be no row of the table
            over = reference.ended(lengths, tokens.shape[1 if batch_first else 0], batch_first)
            tokens = tokens.masked_fill(over, 0)
        x = torch.nn.functional.embedding(tokens, x)
    place = None  # of each row of a packed sequence in the padded one, and back
    if batch_sizes is not None:
        batch_first = False
        batch: Any = batch_sizes[0].item() if states is None else states[0].shape[-2]
        lengths, place, padded = reference.packed_places(batch_sizes, x.shape[0], batch, x.device)
        x, resets = x[padded], None if resets is None else resets[padded]
    one_step = x.dim() == 2
    if one_step:
        x, batch_first = x.unsqueeze(0), False
    layered = not one_step and (states is None or states[0].dim() == 3)
    if states is None:
        w_hh = weights[1]
        assert w_hh is not None
        widths = (w_hh.shape[1], w_hh.shape[0] // 4)[: 2 if cell == "lstm" else 1]  # of h; c has 4 gates
        starts = tuple(x.new_zeros(x.shape[0 if batch_first else 1], width) for width in widths)
    else:
        starts = tuple(s.squeeze(0) for s in states) if layered else tuple(states)
    all_states, ends = reference.unroll(
        cell, x, starts, weights, batch_first, reverse, resets=resets, lengths=lengths, detach_every=detach_every
    )
    y, *cells = all_states
    if batch_first:
        cells = [c.transpose(0, 1) for c in cells]
    if place is not None:
        y, *cells = (s.flatten(0, 1)[place] for s in (y, *cells))
    return (
        y.squeeze(0) if one_step else y,
        *(s.unsqueeze(0) if layered else s for s in ends),
        *(cells if return_states else ()),
    )


def _setup_double(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    *given, batch_first, reverse, _, _ = inputs[:_WITHOUT_MASKS]
    optional: tuple[Any, ...] = (*NO_MASKS, None)
    *masks, dc = (*inputs[_WITHOUT_MASKS:], *optional[len(inputs) - _WITHOUT_MASKS :])
    ctx.save_for_backward(*given[:3], dc, *given[3 : 3 + _TENSORS + 1], *masks[:3])
    ctx.layout, ctx.detach_every = (batch_first, reverse), masks[3]
    ctx.set_materialize_grads(False)


def _double_backward(cell: str, ctx: Any, *grads: TensorOrNone) -> tuple[TensorOrNone, ...]:
    """Gradients for all arguments of the backward operator."""
    *arguments, tokens, batch_sizes, lengths, resets = ctx.saved_tensors
    masks = Masks(batch_sizes, lengths, resets, ctx.detach_every)
    given = [i for i, t in enumerate(arguments) if t is not None]

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        """The backward operator's results for those of the seven tensors that are not None."""
        full: list[TensorOrNone] = [None] * len(arguments)
        for i, v in zip(given, values, strict=True):
            full[i] = v
        cotangents, inputs = full[:4], full[4:]
        present = [i for i, t in enumerate(inputs) if t is not None]

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            some = list(inputs)
            for i, v in zip(present, values, strict=True):
                some[i] = v
            return _outputs(cell, some, tokens, masks, *ctx.layout)

        ys, pull = _vjp(outputs, *(inputs[i] for i in present))
        return pull(tuple(torch.zeros_like(y) if d is None else d for y, d in zip(ys, cotangents, strict=False)))

    # The derivative is of what forward computed, which autocast, if it is on now, must not change.
    with torch.enable_grad(), torch.autocast(arguments[4].device.type, enabled=False):
        results, pull = _vjp(first, *(arguments[i] for i in given))
        # A result that was not asked for has no elements, and its gradient none either.
        asked = [g for g, t in zip(grads, arguments[4:], strict=True) if t is not None]
        cotangents = (
            torch.zeros_like(r) if g is None or g.shape != r.shape else g for r, g in zip(results, asked, strict=True)
        )
        second = iter(pull(tuple(cotangents)))
    # y, saved and c are computed from the other arguments: their share of the gradient is in those.
    dy, dh_n, dc_n, dc, *inputs = (None if t is None else next(second) for t in arguments)
    return (dy, dh_n, dc_n, *inputs, *(None,) * (_WITHOUT_MASKS - 3 - _TENSORS + len(masks)), dc)


def _register(cell: str) -> None:
    def setup(ctx, inputs, output):
        _setup_context(cell, ctx, inputs, output)

    def backward(ctx, dy, dh_n, dc_n, _, dc):
        grads = _backward(cell, _call_backward, ctx, ctx.needs_input_grad[:_TENSORS], dy, dh_n, *_of_c(cell, dc_n, dc))
        return (*grads, *(None,) * _OTHERS)

    def double(ctx, *grads):
        return _double_backward(cell, ctx, *grads)

    def refuse(ctx, *grads):
        raise RuntimeError(f"fusedrnn: this result was computed without what its backward needs; use {cell}_saving")

    torch.library.register_autograd(FORWARD[cell], refuse)
    torch.library.register_autograd(SAVING[cell], backward, setup_context=setup)
    torch.library.register_autograd(BACKWARD[cell], double, setup_context=_setup_double)


for _cell in CELLS:
    _register(_cell)


class _BackwardFunction(torch.autograd.Function):
    """``apply(cell, *arguments of the backward operator)``: that operator, eagerly, with a derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cell, *args):
        return BACKWARD[cell](*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        cell, *args = inputs
        ctx.cell = cell
        _setup_double(ctx, args, output)

    @staticmethod
    def backward(ctx, *grads):
        return (None, *_double_backward(ctx.cell, ctx, *grads))


class _LayerFunction(torch.autograd.Function):
    """``apply(cell, *arguments of a saving operator)``: that operator, eagerly.

    Returns ``(y, h_n, c_n, saved, c)`` as the operator does. Differentiable any number of times in reverse mode, and
    under torch.func's vmap, grad and vjp.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(cell, *args):
        return SAVING[cell](*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        cell, *args = inputs
        ctx.cell = cell
        _setup_context(cell, ctx, args, output)

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n, _, dc):
        cell, needed = ctx.cell, ctx.needs_input_grad[1 : 1 + _TENSORS]
        grads = _backward(cell, _BackwardFunction.apply, ctx, needed, dy, dh_n, *_of_c(cell, dc_n, dc))
        return (None, *grads, *(None,) * _OTHERS)


class EagerFunction(torch.autograd.Function):
    """``run_eagerly(options, *seven tensors of a saving operator)``: ``(y, h_n)`` or ``(y, h_n, c_n)``, and c.

    ``options`` are the cell, whether c of every step is returned, and what the operator takes after the tensors. The
    same derivatives as :class:`_LayerFunction` of any order, but not under torch.func's transforms: what those need
    takes more time than a short layer. So do arguments that have no gradient, which therefore come as one.
    """

    @staticmethod
    def forward(ctx, options, *tensors):
        cell, return_states, others = options
        inputs = (*tensors, *others)
        output = run_below_autograd(SAVING[cell], *inputs)
        ctx.cell = cell
        _save(ctx, inputs, output)
        return results_of(cell, output, return_states)

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n=None, dc=None):
        # Only under create_graph is the gradient itself differentiated.
        run = _BackwardFunction.apply if torch.is_grad_enabled() else _call_backward_below_autograd
        return (None, *_backward(ctx.cell, run, ctx, ctx.needs_input_grad[1:], dy, dh_n, dc_n, dc))


# Function.apply without what it does for torch.func's transforms.
run_eagerly = super(torch.autograd.Function, EagerFunction).apply

_RESULTS = {cell: 1 + CELLS[cell].states for cell in CELLS}


def results_of(cell: str, output: tuple[Tensor, ...], return_states: bool) -> tuple[Tensor, ...]:
    """Of what a saving operator returns, y, the final states and, where asked for, c of every step."""
    results = output[: _RESULTS[cell]]
    return (*results, output[4]) if return_states else results


def run_below_autograd(op: Any, *args: Any) -> Any:
    """Calls an operator without recording it, which spares the dispatcher a call of Python, and OpOverload another."""
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args)


def _call_backward(cell: str, *args: Any) -> Any:
    return BACKWARD[cell](*args)


def _call_backward_below_autograd(cell: str, *args: Any) -> Any:
    return run_below_autograd(BACKWARD[cell], *args)


def _of_c(cell: str, dc_n: TensorOrNone, dc: TensorOrNone) -> tuple[TensorOrNone, TensorOrNone]:
    """The gradients of c, if the cell has it: a transform may make up some for the results of no elements."""
    return (dc_n, dc) if CELLS[cell].states == 2 else (None, None)


class LSTMFunction(_LayerFunction):
    """:class:`_LayerFunction` of the LSTM; ``cell`` is "lstm"."""


class GRUFunction(_LayerFunction):
    """:class:`_LayerFunction` of the GRU; ``cell`` is "gru" and c0 is None."""


class RNNFunction(_LayerFunction):
    """:class:`_LayerFunction` of the plain RNN; ``cell`` is "rnn_tanh" or "rnn_relu" and c0 is None."""


FUNCTIONS = {"lstm": LSTMFunction, "gru": GRUFunction, "rnn_tanh": RNNFunction, "rnn_relu": RNNFunction}
