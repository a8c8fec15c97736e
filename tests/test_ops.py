"""What torch is told of the operators, and what the operators refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import NAMES, arguments, cotangents
from torch.utils._pytree import tree_map

from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_argument_but_x = pytest.mark.parametrize(
    "cell, name", [(c, n) for c in CELLS for n in NAMES[1:] if n != "c0" or CELLS[c].states == 2]
)


def backward_arguments(cell: str, batch_first: bool, requires_grad: bool) -> tuple[Any, ...]:
    args = arguments(cell, (3, 2, 4, 5), batch_first=batch_first, requires_grad=requires_grad)
    with torch.no_grad():
        y, _, _, saved, c = SAVING[cell](*args, None, batch_first, False, False)
    grads = [g.requires_grad_(requires_grad) for g in cotangents(cell, args, (batch_first, False))]
    return (*grads, *[None] * (3 - len(grads)), *args, None, y, saved, c, batch_first, False, True, True)


@each_cell
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("batch_first, reverse, bias", [(False, False, True), (True, True, True), (False, True, False)])
def test_opcheck_passes_for_the_forward_operators(cell, requires_grad, batch_first, reverse, bias):
    args = arguments(cell, (3, 2, 4, 5), batch_first=batch_first, bias=bias, requires_grad=requires_grad)
    for recompute in (False, True):
        torch.library.opcheck(SAVING[cell], (*args, None, batch_first, reverse, recompute))
    if not requires_grad:
        torch.library.opcheck(FORWARD[cell], (*args, None, batch_first, reverse))


@each_cell
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_opcheck_passes_for_the_backward_operators(cell, requires_grad, batch_first):
    torch.library.opcheck(BACKWARD[cell], backward_arguments(cell, batch_first, requires_grad))


@each_cell
@pytest.mark.parametrize("need_x, need_w", [(True, False), (False, True), (False, False)])
def test_gradients_that_are_not_asked_for_have_no_elements_and_the_others_are_the_same(cell, need_x, need_w):
    args = backward_arguments(cell, False, False)
    whole = BACKWARD[cell](*args)
    part = BACKWARD[cell](*args[:-2], need_x, need_w)
    asked = [need_x, True, True, *[need_w] * 4]
    for a, b, wanted in zip(whole, part, asked, strict=True):
        assert torch.equal(a, b) if wanted else b.numel() == 0


@each_cell
def test_results_alias_neither_each_other_nor_an_argument(cell):
    def storages(tensors: Any) -> list[int]:
        return [t.untyped_storage().data_ptr() for t in tensors if isinstance(t, torch.Tensor) and t.numel()]

    args = arguments(cell, (3, 2, 4, 5))
    forward = SAVING[cell](*args, None, False, False, False)
    backward = BACKWARD[cell](*backward_arguments(cell, False, False))
    for results, given in ((forward, args), (backward, ())):
        seen = storages(results)
        assert len(set(seen)) == len(seen)
        assert not set(seen) & set(storages(given))


@each_cell
def test_shapes_on_the_meta_device_are_those_of_the_kernels(cell):
    for batch_first in (False, True):
        given = arguments(cell, (3, 2, 4, 5), batch_first=batch_first)
        for op, args in (
            (FORWARD[cell], (*given, None, batch_first, False)),
            (SAVING[cell], (*given, None, batch_first, False, False)),
            (BACKWARD[cell], backward_arguments(cell, batch_first, False)),
        ):
            on_meta = op(*tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, args))
            for real, fake in zip(op(*args), on_meta, strict=True):
                assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


@each_argument_but_x
def test_a_wrong_shape_is_refused_with_the_expected_and_the_given_one(cell, name):
    args = arguments(cell, (3, 2, 4, 5))
    right = getattr(args, name)
    wrong = args._replace(**{name: torch.cat([right, right[:1]])})
    with pytest.raises(RuntimeError) as info:
        FORWARD[cell](*wrong, None, False, False)
    assert f"expected {name} of shape {list(right.shape)}, got {[right.shape[0] + 1, *right.shape[1:]]}" in str(
        info.value
    )


@each_argument_but_x
def test_a_wrong_dtype_is_refused_with_the_expected_and_the_given_one(cell, name):
    args = arguments(cell, (3, 2, 4, 5))
    wrong = args._replace(**{name: getattr(args, name).float()})
    with pytest.raises(RuntimeError, match=rf"expected {name} of the dtype of x \(Double\), got Float"):
        FORWARD[cell](*wrong, None, False, False)


def test_only_floating_point_tensors_are_taken():
    for dtype in (torch.uint8, torch.int64, torch.complex64):
        with pytest.raises(RuntimeError, match="expected x of dtype float32"):
            torch.ops.fusedrnn.activations(torch.ones(4).to(dtype))
    args = list(backward_arguments("gru", False, False))
    args[3] = args[3].to(torch.uint8)
    with pytest.raises(RuntimeError, match="expected x of dtype float32, float64, bfloat16 or float16, got Byte"):
        BACKWARD["gru"](*args)


def test_c0_is_demanded_by_the_lstm_with_h0_and_refused_by_the_others():
    for cell in CELLS:
        args = arguments(cell, (3, 2, 4, 5))
        wrong = args._replace(c0=args.h0 if args.c0 is None else None)
        with pytest.raises(RuntimeError, match="c0 is for the LSTM"):
            FORWARD[cell](*wrong, None, False, False)


@each_cell
def test_backward_without_what_forward_saves_is_refused(cell):
    args = arguments(cell, (3, 2, 4, 5), requires_grad=True)
    y = FORWARD[cell](*args, None, False, False)[0]
    with pytest.raises(RuntimeError, match=f"use {cell}_saving"):
        y.sum().backward()
