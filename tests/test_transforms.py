"""torch.func, torch.compile, torch.export, AOTInductor and TorchScript on modules under their options."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    LAYERS,
    Kind,
    assert_bitwise,
    close,
    each_module,
    everything,
    f64,
    flatten,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim
from torch.func import functional_call, grad, jvp, vmap

import fusedrnn

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"recompute": True},
]
each_layer_with_options = pytest.mark.parametrize(
    "kind, options",
    [
        pytest.param(kind, options, id="-".join([repr(kind), *(f"{k}={v}" for k, v in options.items())]))
        for kind in LAYERS
        for options in OPTIONS
    ],
)
compiles = pytest.mark.usefixtures("fresh_dynamo")


def size(module: Any, T: int, B: int) -> tuple[int, int, int]:
    return (B, T, 3) if module.batch_first else (T, B, 3)


def loss_of(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return sum((t.sin().sum() for t in flatten(functional_call(module, parameters, (x,)))), x.new_zeros(()))

    return loss


def detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


@each_module
def test_a_tensor_that_a_transform_has_let_out_is_what_it_held(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, scale = kind.example(module, hx=False)[0].detach(), torch.tensor(1.5, dtype=f64, requires_grad=True)
    let_out: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        let_out.append(x * scale)
        return x.sum()

    grad(loss)(x)

    def gradient(x: Tensor) -> Tensor:
        y = flatten(module(x))[0]
        return torch.autograd.grad(y.sin().sum(), scale)[0]

    assert torch.equal(gradient(let_out[0]), gradient(x * scale))


# ------------------------------------------------------------------------------------------------------- derivatives


@each_layer_with_options
def test_both_orders_and_modes_agree_with_finite_differences(kind: Kind, options: dict[str, Any]) -> None:
    module = kind.ours(2, 3, dtype=f64, **options)
    x, hx = kind.example(module, T=3, B=2)
    names, weights = zip(*module.named_parameters(), strict=True)
    states = flatten(hx)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx = rest[: len(states)] if len(states) == 2 else rest[0]
        given = dict(zip(names, rest[len(states) :], strict=True))
        return tuple(flatten(functional_call(module, given, (x, hx))))

    assert gradcheck(run, (x, *states, *weights), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(run, (x, *states, *weights), fast_mode=True)


@each_layer_with_options
def test_per_sample_gradients_and_jvp_are_those_of_each_sample(kind: Kind, options: dict[str, Any]) -> None:
    module = kind.ours(3, 4, dtype=f64, **options)
    parameters, loss = detached(module), loss_of(module)
    samples = torch.randn(3, *size(module, 4, 2), dtype=f64)
    together = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for i, x in enumerate(samples):
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        loss(leaves, x).backward()
        for name, leaf in leaves.items():
            close(name, together[name][i], leaf.grad, 1e-12)
        direction = {name: torch.randn_like(p) for name, p in parameters.items()}
        _, pushed = jvp(lambda p, x=x: loss(p, x), (parameters,), (direction,))
        expected = sum((leaves[name].grad * direction[name]).sum() for name in leaves)
        close("jvp", pushed, expected, 1e-11)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda loss: grad(loss),
    "vmap of grad": lambda loss: lambda p, x: vmap(grad(loss), in_dims=(None, 0))(p, torch.stack([x, 2 * x])),
    "vmap": lambda loss: lambda p, x: vmap(loss, in_dims=(None, 0))(p, torch.stack([x, 2 * x])),
    "jvp": lambda loss: lambda p, x: jvp(lambda x: loss(p, x), (x,), (x.cos(),))[1],
    "grad of grad": lambda loss: lambda p, x: grad(lambda x: grad(loss, argnums=1)(p, x).sin().sum())(x),
}


@compiles
@pytest.mark.parametrize("transform", TRANSFORMS)
@each_module
def test_a_transform_inside_a_compiled_function_is_the_one_outside(kind: Kind, transform: str) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x = kind.example(module)[0].detach()
    run = TRANSFORMS[transform](loss_of(module))
    parameters = detached(module)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual, expected = (f(parameters, x) for f in (compiled, run))
    if not isinstance(expected, dict):
        actual, expected = {"": actual}, {"": expected}
    for name, tensor in expected.items():
        close(name, actual[name], tensor, 1e-12)


# ------------------------------------------------------------------------------------------------ graphs of any length


@compiles
@each_layer_with_options
def test_changing_lengths_and_batches_compile_twice_at_most(kind: Kind, options: dict[str, Any]) -> None:
    """Once for the first size, and once for all others, in training and without being told that sizes are dynamic."""
    module = kind.ours(3, 4, dtype=f64, **options)
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for T, B in [(5, 7), (6, 9), (8, 10), (11, 3), (20, 17), (2, 5)]:
        x = torch.randn(size(module, T, B), dtype=f64, requires_grad=True)
        y, expected = compiled(x)[0], module(x)[0]
        assert_bitwise({"y": y}, {"y": expected})
        assert_bitwise({"x": torch.autograd.grad(y.sum(), x)[0]}, {"x": torch.autograd.grad(expected.sum(), x)[0]})
    assert counter.frame_count == 2


@each_layer_with_options
def test_an_exported_layer_takes_any_length_and_batch(kind: Kind, options: dict[str, Any]) -> None:
    module = kind.ours(3, 4, dtype=f64, **options).eval()
    sizes = ({0: Dim("first", min=2), 1: Dim("second", min=2)},)
    program = torch.export.export(module, (torch.randn(size(module, 7, 5), dtype=f64),), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for T, B in [(7, 5), (2, 9), (13, 4)]:
        x = torch.randn(size(module, T, B), dtype=f64)
        assert_bitwise(dict(enumerate(flatten(loaded(x)))), dict(enumerate(flatten(module(x)))))


class Decoder(nn.Module):
    """Layers, and a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = fusedrnn.LSTM(3, 4, 2, bidirectional=True)
        self.cell = fusedrnn.GRUCell(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layers(x)
        h = None
        for t in range(2):
            h = self.cell(y[t], h)
        return h


def test_an_exported_model_trains() -> None:
    model = Decoder()
    exported = torch.export.export(model, (torch.randn(7, 5, 3),)).module()
    x = torch.randn(7, 5, 3)
    exported(x).sin().sum().backward()
    model(x).sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        close(name, exported.get_parameter(name).grad, parameter.grad, 0.0)


@pytest.mark.slow
def test_aotinductor_compiles_a_model_of_any_length_and_batch(tmp_path: Path) -> None:
    model = Decoder().eval()
    sizes = ({0: Dim("T", min=3), 1: Dim("B", min=2)},)
    program = torch.export.export(model, (torch.randn(7, 5, 3),), dynamic_shapes=sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
    for x in (torch.randn(7, 5, 3), torch.randn(4, 9, 3)):
        torch.testing.assert_close(loaded(x), model(x))


# ------------------------------------------------------------------------------------------------------- TorchScript


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@each_module
def test_torchscript_says_what_to_use(kind: Kind) -> None:
    for model in (kind.ours(3, 4), nn.Sequential(nn.Linear(2, 3), kind.ours(3, 4))):
        with pytest.raises(NotImplementedError, match=r"torch\.export.*unfuse"):
            torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("with_grad", [True, False], ids=["grad", "no_grad"])
@each_module
def test_a_trace_is_saved_loaded_and_takes_other_sizes(kind: Kind, with_grad: bool) -> None:
    module = kind.ours(3, 4, dtype=f64, **everything(kind)).eval()
    with torch.set_grad_enabled(with_grad):
        traced = torch.jit.trace(module, kind.example(module, T=7, B=5, hx=False)[0].detach())
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = kind.example(module, T=4, B=2, hx=False)[0].detach()
    assert_bitwise(dict(enumerate(flatten(loaded(x)))), dict(enumerate(flatten(module(x)))))
    grads = [torch.autograd.grad(flatten(m(x))[0].sin().sum(), list(m.parameters())) for m in (loaded, module)]
    assert_bitwise(*(dict(enumerate(g)) for g in grads))


# ---------------------------------------------------------------------------------------------------------------- fx


class Tracer(torch.fx.Tracer):
    """What docs/migrating.md tells users of torch.fx to write."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.RNNBase, nn.RNNCellBase)) or super().is_leaf_module(m, module_qualified_name)


@each_module
def test_fx_traces_a_model_around_the_module(kind: Kind) -> None:
    model = nn.Sequential(nn.Linear(3, 3, dtype=f64), kind.ours(3, 4, dtype=f64))
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = kind.example(model[1])[0].detach()
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    assert_bitwise(dict(enumerate(flatten(traced(x)))), dict(enumerate(flatten(model(x)))))
