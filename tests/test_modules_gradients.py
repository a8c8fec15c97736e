"""Gradients: against finite differences, for every set of tensors that may require one, and across calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    Kind,
    assert_bitwise,
    assert_same,
    call,
    cotangent,
    each_cell,
    each_layer,
    each_module,
    f64,
    flatten,
    outputs,
    results,
)
from torch import Tensor, nn


def check_gradients(module: nn.Module, x: Tensor, hx: Any, fast_mode: bool) -> None:
    states = flatten(hx)
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        state = rest[: len(states)] if len(states) == 2 else rest[0]
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        arguments = (x, state) if states else (x,)
        return tuple(flatten(torch.func.functional_call(module, parameters, arguments)))

    assert torch.autograd.gradcheck(function, (x, *states, *module.parameters()), fast_mode=fast_mode)


@pytest.mark.parametrize("B, hx", [(2, True), (None, False)], ids=["batched-hx", "unbatched-no_hx"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("num_layers, dropout", [(1, 0.0), (2, 0.5)])
@each_layer
def test_gradcheck_of_every_layer_option(
    kind: Kind, num_layers: int, dropout: float, bias: bool, batch_first: bool, bidirectional: bool, B: int, hx: bool
) -> None:
    module = kind.ours(2, 3, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
                       bidirectional=bidirectional, dtype=f64)  # fmt: skip
    check_gradients(module, *kind.example(module, T=3, B=B, hx=hx), fast_mode=True)


@each_layer
def test_gradcheck_of_a_whole_layer_element_by_element(kind: Kind) -> None:
    module = kind.ours(2, 2, 2, batch_first=True, bidirectional=True, dtype=f64)
    check_gradients(module, *kind.example(module, T=2, B=2), fast_mode=False)


@pytest.mark.parametrize("B, hx", [(2, True), (None, False)], ids=["batched-hx", "unbatched-no_hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@each_cell
def test_gradcheck_of_every_cell_option_element_by_element(kind: Kind, bias: bool, B: int | None, hx: bool) -> None:
    module = kind.ours(2, 3, bias=bias, dtype=f64)
    check_gradients(module, *kind.example(module, B=B, hx=hx), fast_mode=False)


@pytest.mark.parametrize(
    "wanted",
    [(), ("x",), ("h_0",), ("c_0",), ("weight_ih",), ("weight_hh",), ("bias_ih",), ("bias_hh",), ("h_0", "bias_hh")],
    ids=lambda wanted: "+".join(wanted) or "none",
)
@each_module
def test_only_what_requires_a_gradient_gets_one(kind: Kind, wanted: tuple[str, ...]) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64, **({} if kind.is_cell else {"num_layers": 2}))
    x, hx = kind.example(ours)
    leaves = {"x": x, **dict(zip(kind.states, flatten(hx), strict=True))}
    for name, leaf in [*leaves.items(), *ours.named_parameters(), *theirs.named_parameters()]:
        leaf.requires_grad_(name.split("_l")[0] in wanted)
    actual, expected = call(ours, x, hx), call(theirs, x, hx)
    for mine, other in zip(flatten(actual), flatten(expected), strict=True):
        assert mine.requires_grad == other.requires_grad
    assert_same(results(ours, x, hx), results(theirs, x, hx))


@pytest.mark.parametrize("used", [("y",), ("h_n",), ("c_n",), ("y", "c_n")], ids="+".join)
@each_module
def test_outputs_that_are_not_used_add_no_gradient(kind: Kind, used: tuple[str, ...]) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64, **({} if kind.is_cell else {"num_layers": 2, "bidirectional": True}))
    x, hx = kind.example(ours)
    assert_same(results(ours, x, hx, used=used), results(theirs, x, hx, used=used))


@each_module
def test_backward_twice_gives_the_same_and_a_third_time_the_graph_is_gone(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    leaves = [x, *flatten(hx), *module.parameters()]
    loss = sum((cotangent(out) * out).sum() for out in flatten(call(module, x, hx)))
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert_bitwise(dict(enumerate(first)), dict(enumerate(second)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaves)


@each_module
def test_gradients_accumulate_over_calls(kind: Kind) -> None:
    """Three calls and two backward passes; the state of the second call is the result of the first."""
    ours, theirs = kind.pair(3, 4, dtype=f64)
    x, hx = kind.example(ours)
    grads = []
    for module in (ours, theirs):
        first = call(module, x, hx)
        second = call(module, x, first if kind.is_cell else first[1])
        sum(out.sum() for out in flatten(second)).backward()
        call(module, x, hx)[0].square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert_same(*grads)


@each_layer
def test_parameters_shared_between_layers_get_both_gradients(kind: Kind) -> None:
    ours, theirs = kind.pair(4, 4, 2, dtype=f64)
    for module in (ours, theirs):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(module, f"{name}_l1", getattr(module, f"{name}_l0"))
        assert len(list(module.parameters())) == 4
    x, hx = kind.example(ours)
    assert_same(results(ours, x, hx), results(theirs, x, hx))


@each_module
def test_no_grad_and_inference_mode_give_the_same_numbers_without_a_graph(kind: Kind) -> None:
    ours, theirs = kind.pair(3, 17, dtype=f64)
    x, hx = kind.example(ours)
    expected = {name: tensor.detach() for name, tensor in outputs(theirs, x, hx).items()}
    with torch.no_grad():
        quiet = outputs(ours, x, hx)
    with torch.inference_mode():
        inferred = outputs(ours, x, hx)
    assert_same(quiet, expected)
    assert not any(tensor.requires_grad for tensor in quiet.values())
    assert all(tensor.is_inference() for tensor in inferred.values())
    with torch.inference_mode():
        assert_same(inferred, expected)
        # A module that is made here has weights without a version counter; what is written into them counts.
        made_here = kind.ours(3, 17, dtype=f64)
        call(made_here, x, hx)
        made_here.load_state_dict(theirs.state_dict())
        assert_same(outputs(made_here, x, hx), expected)


@each_layer
def test_float32_sums_over_thousands_of_rows_round_no_more_than_those_of_nn(kind: Kind) -> None:
    """Against float64. A ReLU is kept from its kink, where one rounded sign is more than all rounding."""
    torch.manual_seed(3)
    ours, theirs = kind.pair(48, 64, dtype=torch.float32)
    x = torch.randn(64, 64, 48)
    if kind.is_relu:
        x = x.abs()
        with torch.no_grad():
            for parameter in (*ours.parameters(), *theirs.parameters()):
                parameter.abs_().mul_(0.1)
    dy = torch.randn(64, 64, 64)

    def gradients(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        parameters = dict(module.named_parameters())
        y = module(x.to(dtype))[0]
        grads = torch.autograd.grad(y, list(parameters.values()), dy.to(dtype))
        return {name: grad.double() for name, grad in zip(parameters, grads, strict=True)}

    fused, plain = gradients(ours, torch.float32), gradients(theirs, torch.float32)
    exact = gradients(theirs.double(), f64)
    for name, grad in exact.items():
        error = (fused[name] - grad).abs().max()
        assert error <= 2 * (plain[name] - grad).abs().max(), name
