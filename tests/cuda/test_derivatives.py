"""Derivatives on the device by finite differences, in float64, and through torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device_cases import Case, draw, fused, leaves
from op_cases import Arguments
from places import Place
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fusedrnn import network, reference
from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_layout = pytest.mark.parametrize(
    "layout", [(False, False), (True, True)], ids=["time-first", "batch-first-reverse"]
)
f64 = torch.float64


def function_of(case: Case, args: Arguments) -> Any:
    """The results as a function of the tensors that are given."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return fused(case, Arguments(*(None if t is None else next(rest) for t in args)))

    return run


@each_cell
@each_layout
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_gradients_agree_with_finite_differences(
    place: Place, cell: str, layout: tuple[bool, bool], bias: bool, recompute: bool
) -> None:
    case = Case(cell, (3, 2, 3, 4), f64, *layout, bias=bias, recompute=recompute)
    args = leaves(draw(case).args, place.device)
    assert gradcheck(function_of(case, args), args.given(), fast_mode=place.slow)


@each_cell
@pytest.mark.parametrize(
    "masks, reverse", [(("resets", "lengths", "states"), True), (("resets", "packed"), True), (("states",), False)]
)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_gradients_with_masks_agree_with_finite_differences(
    place: Place, cell: str, masks: tuple[str, ...], reverse: bool, recompute: bool
) -> None:
    case = Case(cell, (4, 3, 2, 3), f64, reverse=reverse, masks=masks, recompute=recompute)
    args = leaves(draw(case).args, place.device)
    assert gradcheck(function_of(case, args), args.given(), fast_mode=place.slow)
    assert gradgradcheck(function_of(case, args), args.given(), fast_mode=True)


@each_cell
@each_layout
def test_second_derivatives_agree_with_finite_differences(place: Place, cell: str, layout: tuple[bool, bool]) -> None:
    case = Case(cell, (2, 2, 2, 3), f64, *layout)
    args = leaves(draw(case).args, place.device)
    assert gradgradcheck(function_of(case, args), args.given(), fast_mode=True)


@each_cell
def test_first_gradients_under_create_graph_are_those_without_it(place: Place, cell: str) -> None:
    case = Case(cell, (4, 3, 2, 5), f64)
    args = leaves(draw(case).args, place.device)

    def grads(create_graph: bool) -> tuple[Tensor, ...]:
        y = function_of(case, args)(*args.given())[0]
        return torch.autograd.grad(y.sin().sum(), args.given(), create_graph=create_graph)

    for plain, differentiable in zip(grads(False), grads(True), strict=True):
        assert differentiable.requires_grad and torch.equal(plain, differentiable.detach())


@each_cell
@pytest.mark.parametrize("name", ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"])
def test_gradient_of_one_argument_alone_is_that_of_all(place: Place, cell: str, name: str) -> None:
    """What is not asked for is not computed, and the rest must not depend on it."""
    case = Case(cell, (4, 3, 2, 5), f64, True, False)
    args = leaves(draw(case).args, place.device)
    alone = Arguments(*(None if t is None else t.detach() for t in args))
    getattr(alone, name).requires_grad_()

    def grad(args: Arguments) -> Tensor:
        y = function_of(case, args)(*args.given())[0]
        return torch.autograd.grad(y.sin().sum(), getattr(args, name))[0]

    torch.testing.assert_close(grad(alone), grad(args), rtol=1e-10, atol=1e-12)


@pytest.mark.any_algorithm
@each_cell
def test_per_sample_gradients_agree_with_the_reference(place: Place, cell: str) -> None:
    place.needs_torchs_own()  # of vmap
    case = Case(cell, (3, 2, 4, 5), f64)
    args = draw(case).args
    samples = torch.randn(2 if place.slow else 3, *args.x.shape, dtype=f64)

    def loss(run: Any, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        states = tuple(x.new_zeros(x.shape[1], 5) for _ in range(CELLS[cell].states))
        return run(cell, x, states, weights)[0].sin().sum()

    weights = tuple(w.to(place.device) for w in args[3:])
    together = torch.func.vmap(
        torch.func.grad(lambda w, x: loss(network.layer, w, x)), in_dims=(None, 0)
    )(weights, samples.to(place.device))  # fmt: skip
    for i, x in enumerate(samples):
        alone = torch.func.grad(lambda w, x=x: loss(reference.layer, w, x))(tuple(args[3:]))
        torch.testing.assert_close(tuple(g[i].cpu() for g in together), alone, rtol=1e-9, atol=1e-12)
