"""The life around a call: edited weights, hooks, the meta device and torch.compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    LAYERS,
    LSTMS,
    SOME_OPTIONS,
    Kind,
    assert_bitwise,
    assert_same,
    call,
    each_cell,
    each_layer,
    each_module,
    everything,
    f32,
    f64,
    flatten,
    on_meta,
    outputs,
    results,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize


@pytest.mark.parametrize("kind", LSTMS, ids=repr)
def test_state_of_an_lstm_may_be_a_list(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    for B in (3, None):
        x, hx = kind.example(module, B=B)
        result = module(x, list(hx))
        assert isinstance(result if kind.is_cell else result[1], tuple)
        assert_bitwise(outputs(module, x, list(hx)), outputs(module, x, hx))


@each_module
def test_arguments_may_be_given_by_keyword(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    by_name = flatten(module(hx=hx, input=x))
    assert_bitwise(dict(enumerate(by_name)), dict(enumerate(flatten(module(x, hx)))))


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def step_of_an_optimizer(module: Any, name: str) -> None:
    weight = getattr(module, name)
    weight.grad = -weight.detach().clone()
    torch.optim.SGD([weight], lr=1.0).step()


def load_doubled(module: Any, name: str, assign: bool) -> None:
    state = {key: value.clone() for key, value in module.state_dict().items()}
    state[name] *= 2
    module.load_state_dict(state, assign=assign)


def plain_tensor(module: Any, name: str) -> None:
    weight = getattr(module, name).detach()
    delattr(module, name)
    setattr(module, name, 2 * weight)


# Ways to double a weight.
EDITS: dict[str, Callable[[Any, str], Any]] = {
    "new_parameter": lambda m, name: setattr(m, name, nn.Parameter(2 * getattr(m, name).detach())),
    "data_in_place": lambda m, name: getattr(m, name).data.mul_(2),
    "data_replaced": lambda m, name: setattr(getattr(m, name), "data", 2 * getattr(m, name).data),
    "parametrize": lambda m, name: parametrize.register_parametrization(m, name, Double()),
    "plain_tensor": plain_tensor,
    "optimizer": step_of_an_optimizer,
    "load_state_dict": lambda m, name: load_doubled(m, name, assign=False),
    "load_state_dict_assign": lambda m, name: load_doubled(m, name, assign=True),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_hh"])
@pytest.mark.parametrize("edit", EDITS)
@each_module
def test_edit_of_a_weight_counts_from_the_next_call(kind: Kind, edit: str, name: str, grad: bool) -> None:
    ours, theirs = kind.pair(3, 5, dtype=f64)
    x, hx = kind.example(ours)
    with torch.set_grad_enabled(grad):
        before = outputs(ours, x, hx)
        with torch.enable_grad():
            EDITS[edit](ours, kind.parameter(name))
        getattr(theirs, kind.parameter(name)).data.mul_(2)
        after = outputs(ours, x, hx)
        assert_same(after, outputs(theirs, x, hx))
        assert not torch.equal(before["h_n"], after["h_n"])
        if grad:
            (actual,), (expected,) = (
                torch.autograd.grad(outputs(m, x, hx)["h_n"], x, torch.ones_like(before["h_n"])) for m in (ours, theirs)
            )
            assert_same({"x": actual}, {"x": expected})


@each_module
def test_gradient_reaches_the_parameter_under_a_parametrization(kind: Kind) -> None:
    ours, theirs = kind.pair(3, 5, dtype=f64)
    x, hx = kind.example(ours)
    name = kind.parameter("weight_hh")
    for module in (ours, theirs):
        parametrize.register_parametrization(module, name, Double())
    assert_same(results(ours, x, hx), results(theirs, x, hx))
    parametrize.remove_parametrizations(ours, name)
    parametrize.remove_parametrizations(theirs, name)
    assert_same(results(ours, x, hx), results(theirs, x, hx))


@each_module
def test_functional_call_uses_the_tensors_it_is_given(kind: Kind) -> None:
    ours, theirs = kind.pair(3, 5, dtype=f64)
    x, hx = kind.example(ours)
    expected = outputs(theirs, x, hx)
    blank = kind.ours(3, 5, dtype=f64)
    before = outputs(blank, x, hx)
    borrowed = flatten(torch.func.functional_call(blank, dict(ours.named_parameters()), (x, hx)))
    assert_same(dict(zip(expected, borrowed, strict=True)), expected)
    assert_bitwise(outputs(blank, x, hx), before)


@each_module
def test_functional_call_may_bring_another_dtype(kind: Kind) -> None:
    module, theirs = kind.pair(3, 5, dtype=f32)
    x, hx = kind.example(module, dtype=f64)
    wide = {name: parameter.double() for name, parameter in module.named_parameters()}
    actual = flatten(torch.func.functional_call(module, wide, (x, hx)))
    expected = outputs(theirs.double(), x, hx)
    assert_same(dict(zip(expected, actual, strict=True)), expected)


@each_module
def test_hooks_see_and_may_replace_what_passes(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    plain = flatten(module(x, hx))
    seen: list[str] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        seen.append("before")
        assert args[0] is x
        return (2 * args[0], *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        seen.append("after")
        return tuple(flatten(result))

    def backward(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        seen.append("backward")
        assert grad_output[0].shape == plain[0].shape

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    handles.append(module.register_full_backward_hook(backward))
    result = module(x, hx)
    assert isinstance(result, tuple) and len(result) == len(plain)
    result[0].sum().backward()
    assert seen == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    assert_same(dict(enumerate(result)), dict(enumerate(flatten(module(2 * x, hx)))))


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
@each_layer
def test_layer_on_meta_infers_shapes(kind: Kind, options: dict[str, Any]) -> None:
    module = kind.ours(3, 4, device="meta", **options)
    for B, hx in itertools.product([3, None, 0], [True, False]):
        x, state = kind.example(module, B=B, hx=hx, dtype=f32)
        expected = outputs(kind.theirs(3, 4, **options), x, state)
        on = outputs(module, x.to("meta"), on_meta(state) if hx else None)
        assert {name: (t.shape, t.dtype, t.device.type) for name, t in on.items()} == {
            name: (t.shape, t.dtype, "meta") for name, t in expected.items()
        }


@each_cell
def test_cell_on_meta_infers_shapes(kind: Kind) -> None:
    module = kind.ours(3, 4, device="meta")
    for B, hx in itertools.product([3, None, 0], [True, False]):
        x, state = kind.example(module, B=B, hx=hx, dtype=f32)
        on = flatten(call(module, x.to("meta"), on_meta(state) if hx else None))
        expected = flatten(call(kind.theirs(3, 4), x, state))
        assert [(t.shape, t.dtype, t.device.type) for t in on] == [(t.shape, t.dtype, "meta") for t in expected]


@each_module
def test_module_from_meta_works_after_to_empty(kind: Kind) -> None:
    theirs = kind.theirs(3, 4, dtype=f64)
    ours = kind.ours(3, 4, dtype=f64, device="meta").to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    x, hx = kind.example(ours)
    assert_same(results(ours, x, hx), results(theirs, x, hx))


# -------------------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@each_module
def test_compiles_into_one_graph(kind: Kind, hx: bool, training: bool) -> None:
    """Outputs and gradients are those of eager mode; with the same seed so are the dropout masks."""
    module = kind.ours(3, 4, dtype=f64, **everything(kind)).train(training)
    x, state = kind.example(module, hx=hx)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x, state, seed=5), results(module, x, state, seed=5))


@pytest.mark.usefixtures("fresh_dynamo")
@each_module
def test_compiles_once_for_every_length_and_batch(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for T, B in [(5, 7), (6, 9), (8, 10)]:  # no two sizes alike: equal ones would be taken for one
        x, hx = kind.example(module, T=T, B=B)
        assert_same(results(compiled, x, hx), results(module, x, hx))
    assert len(graphs) == 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("kind", [LAYERS[0], LAYERS[1], LAYERS[3]], ids=repr)
def test_inductor_trains_it(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    compiled = torch.compile(module, fullgraph=True, backend="inductor")
    assert_same(results(compiled, x, hx), results(module, x, hx))
