"""torch.autocast: every module takes what it is given, computes in autocast's dtype, and returns it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from cases import (
    SOME_OPTIONS,
    Kind,
    assert_bitwise,
    call,
    each_layer,
    each_module,
    each_module_with_some_options,
    everything,
    f32,
    f64,
    flatten,
    outputs,
    results,
)
from torch import Tensor, nn

import fusedrnn

bf16, f16 = torch.bfloat16, torch.float16
each_half = pytest.mark.parametrize("half", [bf16, f16], ids=str)


def to(tree: Any, dtype: torch.dtype) -> Any:
    """A leaf of another dtype for each leaf."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return tree.detach().to(dtype).requires_grad_(tree.requires_grad)
    return tuple(to(branch, dtype) for branch in tree)


@each_half
@each_module_with_some_options
def test_results_are_those_of_a_module_in_that_dtype_and_gradients_come_in_the_parameters(
    kind: Kind, options: dict[str, Any], half: torch.dtype
) -> None:
    module = kind.ours(3, 5, **options)
    x, hx = kind.example(module, dtype=f32)
    with torch.autocast("cpu", half):
        actual = results(module, x, hx, seed=3)
    expected = results(copy.deepcopy(module).to(half), to(x, half), to(hx, half), seed=3)
    for name, tensor in actual.items():
        assert tensor is not None and tensor.dtype == (f32 if name.startswith("grad") else half), name
    assert_bitwise({k: v.to(half) for k, v in actual.items() if v is not None}, expected)


@each_half
@each_module
def test_any_mix_of_dtypes_is_taken_and_all_results_are_in_autocasts(kind: Kind, half: torch.dtype) -> None:
    """The dtypes of input, state and parameters that nn.* takes on one device or another."""
    for given, state, parameters in itertools.product([f32, bf16, f16], [None, f32, bf16, f16], [f32, bf16, f16]):
        module = kind.ours(3, 5, dtype=parameters)
        x, hx = kind.example(module, dtype=given, hx=state is not None)
        with torch.autocast("cpu", half):
            out = flatten(call(module, x, to(hx, state or f32)))
        assert {tensor.dtype for tensor in out} == {half}
        sum(tensor.float().sum() for tensor in out).backward()
        assert x.grad is not None and x.grad.dtype == given
        assert {p.grad.dtype for p in module.parameters()} == {parameters}


@each_module
def test_float64_stays_float64(kind: Kind) -> None:
    module = kind.ours(3, 5, dtype=f64, **everything(kind)).eval()
    x, hx = kind.example(module)
    with torch.autocast("cpu", bf16):
        actual = results(module, x, hx)
    assert_bitwise(actual, results(module, x, hx))


@each_module
def test_float64_input_to_float32_parameters_is_refused_as_without_autocast(kind: Kind) -> None:
    module = kind.ours(3, 5)
    x, hx = kind.example(module)
    with torch.autocast("cpu", bf16), pytest.raises((RuntimeError, ValueError), match=r"float64|Double"):
        call(module, x, hx)


@each_module
def test_a_wrong_shape_is_told_as_without_autocast(kind: Kind) -> None:
    module = kind.ours(3, 5)
    size = (2, 7) if kind.is_cell else (5, 2, 7)
    with torch.autocast("cpu", bf16), pytest.raises(RuntimeError, match="7"):
        module(torch.randn(size, dtype=bf16))


@each_module
def test_a_region_without_autocast_inside_computes_in_float32(kind: Kind) -> None:
    module = kind.ours(3, 5)
    x, hx = kind.example(module, dtype=f32)
    with torch.autocast("cpu", bf16), torch.autocast("cpu", enabled=False):
        actual = outputs(module, x, hx)
    assert_bitwise(actual, outputs(module, x, hx))


@each_half
@each_layer
def test_tokens_are_cast_through_their_table(kind: Kind, half: torch.dtype) -> None:
    module = kind.ours(3, 5)
    table, tokens = torch.randn(4, 3, requires_grad=True), torch.randint(4, (6, 2))
    with torch.autocast("cpu", half):
        y = module(tokens, embedding=table)[0]
    assert y.dtype == half
    torch.testing.assert_close(y, copy.deepcopy(module).to(half)(tokens, embedding=table.to(half))[0])
    y.sum().backward()
    assert table.grad is not None and table.grad.dtype == f32


@each_module
def test_a_backward_inside_autocast_is_the_one_outside(kind: Kind) -> None:
    """As everyone's first training loop has it; with a second derivative, which plain PyTorch computes."""
    module = kind.ours(3, 5)
    x, hx = kind.example(module, dtype=f32)

    def second(forward: bool, backward: bool) -> dict[int, Tensor]:
        with torch.autocast("cpu", bf16, enabled=forward):
            loss = sum(t.float().sin().sum() for t in flatten(call(module, x, hx)))
        with torch.autocast("cpu", bf16, enabled=backward):
            return dict(enumerate(grads_of_grads(loss)))

    def grads_of_grads(loss: Any) -> list[Tensor]:
        leaves = [x, *module.parameters()]
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum((g**2).sum() for g in first), leaves)]

    for forward in (True, False):
        assert_bitwise(second(forward, True), second(forward, False))


@pytest.mark.usefixtures("fresh_dynamo")
@each_module
def test_compiles_into_one_graph_under_autocast(kind: Kind) -> None:
    module = kind.ours(3, 5, **everything(kind)).eval()
    x, hx = kind.example(module, dtype=f32)

    def run(x: Tensor) -> Any:
        with torch.autocast("cpu", bf16):
            return call(module, x, hx)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for name, (actual, expected) in enumerate(zip(flatten(compiled(x)), flatten(run(x)), strict=True)):
        assert_bitwise({name: actual}, {name: expected})
    actual, expected = (torch.autograd.grad(flatten(f(x))[0].float().sum(), x) for f in (compiled, run))
    assert_bitwise({"x": actual[0]}, {"x": expected[0]})


@each_module
def test_per_sample_gradients_under_autocast_are_those_of_each_sample(kind: Kind) -> None:
    module = kind.ours(3, 5)
    samples = torch.stack([kind.example(module, dtype=f32)[0].detach() for _ in range(3)])
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast("cpu", bf16):
            return flatten(torch.func.functional_call(module, parameters, (x,)))[0].float().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, samples)
    for i, x in enumerate(samples):
        assert_bitwise({n: g[i] for n, g in together.items()}, torch.func.grad(loss)(parameters, x))


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_a_model_with_an_lstm_is_as_near_to_float32_as_with_nn(options: dict[str, Any]) -> None:
    """nn.LSTM is the one of nn.* that computes in bfloat16 on the CPU in all versions of torch."""
    theirs = nn.LSTM(16, 32, **options).eval()
    ours = fusedrnn.LSTM(16, 32, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 4, 16)
    exact = theirs(x)[0]
    with torch.autocast("cpu", bf16):
        error, allowed = ((m(x)[0].float() - exact).abs().max() for m in (ours, theirs))
    assert error < 2 * allowed + 1e-3
