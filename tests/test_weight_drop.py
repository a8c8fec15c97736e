"""weight_drop: recurrent weights that are zeroed while a layer trains."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import Kind, close, each_layer, f64, flatten
from torch import Tensor, nn

import fusedrnn
from fusedrnn import reference

OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dropout": 0.3}


def results(module: nn.Module, x: Tensor, hx: Any, seed: int = 3) -> dict[str, Tensor]:
    """Outputs, and the gradients of all parameters, of one call."""
    torch.manual_seed(seed)
    out = flatten(module(x, hx))
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum((t.sin().sum() for t in out), x.new_zeros(())), parameters)
    return {**{str(i): t.detach() for i, t in enumerate(out)}, **dict(zip(names, gradients, strict=True))}


@pytest.mark.parametrize("options", [{}, OPTIONS, {**OPTIONS, "batch_first": True, "bias": False}], ids=str)
@each_layer
def test_results_and_gradients_are_those_of_the_reference(kind: Kind, options: dict[str, Any]) -> None:
    ours = kind.ours(3, 5, weight_drop=0.4, dtype=f64, **options)
    theirs = getattr(reference, kind.class_name)(3, 5, weight_drop=0.4, dtype=f64, **kind.options, **options)
    theirs.load_state_dict(ours.state_dict())
    x, hx = kind.example(ours)
    actual, expected = results(ours, x, hx), results(theirs, x, hx)
    for name, tensor in expected.items():
        close(name, actual[name], tensor, 1e-12)


def test_a_dropped_weight_gets_no_gradient_and_the_others_are_scaled() -> None:
    layer = fusedrnn.LSTM(3, 40, weight_drop=0.25, dtype=f64)
    plain = fusedrnn.LSTM(3, 40, dtype=f64)
    x, hx = torch.randn(6, 2, 3, dtype=f64), None
    gradients = results(layer, x, hx)
    dropped = gradients["weight_hh_l0"] == 0
    assert 0.2 < dropped.double().mean().item() < 0.3
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.weight_hh_l0.copy_((layer.weight_hh_l0 / 0.75).masked_fill(dropped, 0))
    expected = results(plain, x, hx)
    close("y", gradients["0"], expected["0"], 1e-13)
    close("w_hh", gradients["weight_hh_l0"], (expected["weight_hh_l0"] / 0.75).masked_fill(dropped, 0), 1e-12)
    close("w_ih", gradients["weight_ih_l0"], expected["weight_ih_l0"], 1e-12)


@each_layer
def test_each_call_draws_anew_and_leaves_the_parameters_alone(kind: Kind) -> None:
    layer = kind.ours(3, 5, weight_drop=0.5)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 2, 3)
    first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)
    assert layer.state_dict().keys() == kind.theirs(3, 5).state_dict().keys()
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


@each_layer
def test_evaluation_drops_nothing(kind: Kind) -> None:
    ours, theirs = kind.ours(3, 5, weight_drop=0.9).eval(), kind.theirs(3, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3)
    close("y", ours(x)[0], theirs(x)[0], 1e-6)


def test_everything_dropped_is_a_layer_without_recurrence() -> None:
    layer = fusedrnn.RNN(3, 5, weight_drop=1.0, bias=False)
    x = torch.randn(4, 2, 3)
    close("y", layer(x)[0], (x @ layer.weight_ih_l0.T).tanh(), 1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_drops_as_its_original_does(copied: Any) -> None:
    layer = fusedrnn.GRU(3, 5, weight_drop=0.5)
    x = torch.randn(4, 2, 3)
    for name, tensor in results(layer, x, None).items():
        assert torch.equal(results(copied(layer), x, None)[name], tensor), name


def test_a_layer_pickled_by_an_earlier_version_drops_nothing() -> None:
    layer = fusedrnn.GRU(3, 5)
    state = layer.__getstate__()
    del state["weight_drop"]
    old = fusedrnn.GRU.__new__(fusedrnn.GRU)
    old.__setstate__(state)
    x = torch.randn(4, 2, 3)
    assert torch.equal(old(x)[0], layer(x)[0])


def test_tokens_are_served() -> None:
    layer = fusedrnn.LSTM(3, 5, weight_drop=0.5, dtype=f64)
    table, tokens = torch.randn(4, 3, dtype=f64), torch.randint(4, (6, 2))
    outputs = []
    for input, options in ((tokens, {"embedding": table}), (table[tokens], {})):
        torch.manual_seed(3)
        outputs.append(layer(input, **options)[0])
    close("y", *outputs, 1e-13)


@pytest.mark.usefixtures("fresh_dynamo")
def test_it_compiles_into_one_graph_that_draws_anew() -> None:
    layer = fusedrnn.LSTM(3, 20, weight_drop=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, 3)
    torch.manual_seed(3)
    expected, again = layer(x)[0], layer(x)[0]
    torch.manual_seed(3)
    close("first", compiled(x)[0], expected, 1e-6)
    close("second", compiled(x)[0], again, 1e-6)


@each_layer
def test_repr_says_so(kind: Kind) -> None:
    assert "weight_drop=0.5" in repr(kind.ours(3, 5, weight_drop=0.5))
    assert "weight_drop" not in repr(kind.ours(3, 5))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="weight_drop: expected a probability, from 0 to 1, got"):
        fusedrnn.LSTM(3, 5, weight_drop=p)
