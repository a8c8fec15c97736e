"""Construction and state: the modules are made, copied, moved and loaded as their nn.* twins are."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    CELLS,
    LAYERS,
    MODULES,
    Kind,
    assert_bitwise,
    assert_same,
    call,
    each_layer,
    each_module,
    everything,
    f32,
    f64,
    outputs,
    results,
)
from torch import nn

import fusedrnn

CONSTRUCTORS: list[tuple[list[Kind], tuple[Any, ...], dict[str, Any]]] = [
    (MODULES, (3, 4), {}),
    (MODULES, (), {"input_size": 3, "hidden_size": 4}),
    (MODULES, (3,), {"hidden_size": 4, "bias": False, "device": "cpu", "dtype": f64}),
    (LAYERS, (3, 4), {**everything(LAYERS[0]), "bias": False}),
    (LAYERS, (3, 4, 3), {"bidirectional": True}),
    (LAYERS, (3, 4, 2), {"dropout": 1}),
    (LAYERS, (3, 4, 2), {"bidirectional": 1}),
    (LAYERS[:2], (3, 4, 2, False, True, 0.25, True), {}),
    (LAYERS[:2], (3, 4, 2, True, False, 0.0, False, 0, "cpu", f64), {}),
    (CELLS, (3, 4, False), {}),
    (CELLS, (3, 4, 1), {}),
    (CELLS, (3, 4, "yes"), {}),
    (CELLS, (3, 0), {}),
    (CELLS, (0, 4), {}),
    (CELLS[:2], (3, 4, True, "cpu", f64), {}),
]


@pytest.mark.parametrize(
    "kind, args, kwargs",
    [
        pytest.param(kind, args, kwargs, id=f"{kind!r}-{args}-{kwargs}")
        for kinds, args, kwargs in CONSTRUCTORS
        for kind in kinds
    ],
)
def test_constructor_gives_the_module_that_nn_gives(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert_twins(lambda make: make(*args, **kwargs), kind.ours, kind.theirs)


@pytest.mark.parametrize(
    "name, args",
    [
        ("RNN", (3, 4, 2, "relu", False, True, 0.25, True)),
        ("RNN", (3, 4, 2, "tanh", True, False, 0.0, False, 0, "cpu", f64)),
        ("RNN", (3, 4, 1)),
        ("RNNCell", (3, 4, False, "relu")),
        ("RNNCell", (3, 4, True, "tanh", "cpu", f64)),
        ("RNNCell", (3, 4, True, "unknown until it is called")),
    ],
)
def test_positional_nonlinearity_stands_where_nn_has_it(name: str, args: tuple[Any, ...]) -> None:
    assert_twins(lambda make: make(*args), getattr(fusedrnn, name), getattr(nn, name))


def assert_twins(construct: Callable[[Any], Any], make_ours: Any, make_theirs: Any) -> None:
    """The same attributes, text, parameters under the same seed, and use of the random generator."""
    torch.manual_seed(3)
    theirs = construct(make_theirs)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    ours = construct(make_ours)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(ours).__name__ == type(theirs).__name__
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    attributes = {name: value for name, value in vars(theirs).items() if isinstance(value, (int, float, str))}
    assert {name: getattr(ours, name) for name in attributes} == attributes
    expected = dict(theirs.named_parameters())
    actual = dict(ours.named_parameters())
    assert list(actual) == list(expected)
    assert {type(parameter) for parameter in actual.values()} == {nn.Parameter}
    assert_bitwise(actual, expected)


@each_layer
def test_dropout_of_a_single_layer_warns(kind: Kind) -> None:
    with pytest.warns(UserWarning, match=r"num_layers greater than 1, but got dropout=0\.5 and num_layers=1"):
        kind.ours(3, 4, dropout=0.5)


@each_module
def test_state_dict_loads_strictly_both_ways(kind: Kind) -> None:
    ours, theirs = kind.ours(3, 4, **everything(kind)), kind.theirs(3, 4, **everything(kind))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for target, source in [(ours, theirs), (kind.theirs(3, 4, **everything(kind)), ours)]:
        target.load_state_dict(source.state_dict(), strict=True)
        assert_bitwise(target.state_dict(), source.state_dict())


@each_module
def test_state_dict_of_another_size_is_refused(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="size mismatch for " + kind.parameter("weight_hh")):
        kind.ours(3, 4).load_state_dict(kind.theirs(3, 5).state_dict())


@each_layer
def test_all_weights_are_the_parameters_by_layer_and_direction(kind: Kind) -> None:
    ours = kind.ours(3, 4, **everything(kind))
    names = [
        [f"{name}_l{layer}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for layer in range(2)
        for suffix in ("", "_reverse")
    ]
    assert [len(weights) for weights in ours.all_weights] == [4, 4, 4, 4]
    for group, weights in zip(names, ours.all_weights, strict=True):
        assert all(getattr(ours, name) is weight for name, weight in zip(group, weights, strict=True))
    assert [len(weights) for weights in kind.ours(3, 4, bias=False).all_weights] == [2]


def save_and_load(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def save_and_load_state_dict(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    # Zeros, so that nothing but the file can bring the values back.
    fresh = copy.deepcopy(module)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy": copy.deepcopy,
    "torch.save": save_and_load,
    "state_dict": save_and_load_state_dict,
}


@pytest.mark.parametrize("way", COPIES)
@each_module
def test_copy_answers_alike_and_shares_nothing(kind: Kind, way: str) -> None:
    module = kind.ours(3, 4, dtype=f64, **everything(kind)).eval()
    x, hx = kind.example(module)
    before = results(module, x, hx)
    twin = COPIES[way](module)
    assert repr(twin) == repr(module)
    assert twin.training is module.training
    assert_bitwise(results(twin, x, hx), before)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert_bitwise(results(module, x, hx), before)
    assert all(tensor.count_nonzero() == 0 for tensor in outputs(twin, x).values())


@pytest.mark.parametrize(
    "move",
    [lambda m: m.double(), lambda m: m.to(f64), lambda m: m.to("cpu", f64), lambda m: m.type(f64)],
    ids=["double()", "to(dtype)", "to(device, dtype)", "type()"],
)
@each_module
def test_module_moves_to_another_dtype(kind: Kind, move: Callable[[Any], Any]) -> None:
    ours, theirs = kind.pair(3, 4, **everything(kind))
    ours.eval(), theirs.eval()
    call(ours, *kind.example(ours, dtype=f32))
    assert move(ours) is ours
    assert {p.dtype for p in ours.parameters()} == {f64}
    x, hx = kind.example(ours)
    assert_same(results(ours, x, hx), results(theirs.double(), x, hx))
    assert {tensor.dtype for tensor in outputs(ours.float(), x.float()).values()} == {f32}


@each_layer
def test_flatten_parameters_changes_nothing(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64, **everything(kind)).eval()
    x, hx = kind.example(module)
    before = results(module, x, hx)
    assert module.flatten_parameters() is None
    assert_bitwise(results(module, x, hx), before)
