"""Modules and cells on the device, against nn.* in float64 on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import cases
import pytest
import torch
from cases import Kind, Results, assert_same, each_cell, each_layer, each_module, f32, f64, flatten, outputs, widen
from device_cases import moved
from places import Place
from torch import nn
from torch.nn import functional as F

from fusedrnn import functional

TOLERANCE = {f64: 1e-12, f32: 5e-5}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))

OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.0},
]


def home(results: Results) -> Results:
    return {name: None if t is None else t.cpu() for name, t in results.items()}


def compare(place: Place, kind: Kind, dtype: torch.dtype, size: tuple[int, ...], hx: bool = True, **options) -> None:
    """Sizes are T, B, I, H."""
    ours, theirs, x, state = cases.sample(kind, size, dtype, **options)
    state = state if hx else None
    expected = cases.results(theirs, widen(x), widen(state))
    actual = cases.results(ours.to(place.device), moved(x, place.device), moved(state, place.device))
    assert_same(home(actual), expected, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@each_dtype
@each_layer
def test_layers_agree_with_nn(place: Place, kind: Kind, dtype: torch.dtype, options: dict[str, Any]) -> None:
    sizes = place.some([(5, 4, 3, 17), (3, 9, 8, 32)])
    place.check_each(sizes, lambda size: compare(place, kind, dtype, size, hx=size[1] == 4, **options))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@each_dtype
@each_cell
def test_cells_agree_with_nn(place: Place, kind: Kind, dtype: torch.dtype, bias: bool) -> None:
    sizes = place.some([(1, 1, 3, 5), (1, 7, 8, 32), (1, 20, 5, 33)])
    place.check_each(sizes, lambda size: compare(place, kind, dtype, size, hx=size[1] > 1, bias=bias))


@each_module
def test_unbatched_input(place: Place, kind: Kind) -> None:
    ours, theirs = kind.pair(3, 5, dtype=f32)
    for hx in (True, False):
        x, state = kind.example(ours, B=None, hx=hx, dtype=f32)
        expected = cases.results(theirs.double(), widen(x), widen(state))
        actual = cases.results(ours.to(place.device), moved(x, place.device), moved(state, place.device))
        assert_same(home(actual), expected, f32, TOLERANCE[f32])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@each_module
def test_autocast_gives_the_results_of_a_module_in_its_dtype(place: Place, kind: Kind, half: torch.dtype) -> None:
    module = kind.ours(3, 5).to(place.device)
    x, hx = (moved(tree, place.device) for tree in kind.example(module, dtype=f32))
    with torch.autocast(place.device, half):
        actual = outputs(module, x, hx)
    expected = outputs(copy.deepcopy(module).to(half), x.to(half), cast(hx, half))
    for name, tensor in expected.items():
        assert actual[name].dtype == half
        assert torch.equal(actual[name], tensor), name
    actual["h_n"].float().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {f32}


def cast(hx: Any, dtype: torch.dtype) -> Any:
    return tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx.to(dtype)


@pytest.mark.any_algorithm
@each_layer
def test_dropout_in_training_draws_the_masks_of_nn_on_the_same_device(device: str, kind: Kind) -> None:
    ours, theirs = kind.pair(3, 5, 3, dropout=0.4, bidirectional=True, dtype=f32)
    ours, theirs = ours.to(device), theirs.to(device)
    x, hx = (moved(tree, device) for tree in kind.example(ours, T=4, dtype=f32))
    y, dropped = (outputs(module, x, hx)["y"] for module in (ours, copy.deepcopy(ours).eval()))
    assert not torch.equal(y, dropped)
    if device == "cpu":  # cuDNN draws masks of its own
        assert_same(cases.results(ours, x, hx, seed=5), cases.results(theirs, x, hx, seed=5), f32)
    else:
        cases.assert_bitwise(*(cases.results(ours, x, hx, seed=5) for _ in range(2)))


@pytest.mark.any_algorithm
@each_module
def test_a_module_moves_between_devices_and_keeps_its_results(device: str, kind: Kind) -> None:
    module = kind.ours(4, 6, dtype=f32)
    x, hx = kind.example(module, dtype=f32)
    before = outputs(module, x, hx)
    moved_there = outputs(module.to(device), moved(x, device), moved(hx, device))
    assert_same(home(moved_there), before, f32, TOLERANCE[f32])
    assert_same(outputs(module.to("cpu"), x, hx), before, f32)


@each_module
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(place: Place, kind: Kind) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f32)
    x, hx = kind.example(ours, B=0, dtype=f32)
    expected = cases.results(theirs.double(), widen(x), widen(hx))
    actual = cases.results(ours.to(place.device), moved(x, place.device), moved(hx, place.device))
    assert_same(home(actual), expected, f32)
    assert all(not g.count_nonzero() for n, g in actual.items() if g is not None and n.startswith("grad of"))


@pytest.mark.any_algorithm
@each_cell
def test_cells_of_size_zero_answer_as_nn_answers(device: str, kind: Kind) -> None:
    for sizes in [(3, 0), (0, 4)]:
        ours, theirs = kind.pair(*sizes, dtype=f64)
        x, hx = kind.example(ours)
        expected = cases.results(theirs, x, hx)
        actual = cases.results(ours.to(device), moved(x, device), moved(hx, device))
        assert_same(home(actual), expected)


@pytest.mark.any_algorithm
@each_layer
def test_an_empty_sequence_is_refused(device: str, kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        kind.ours(3, 4).to(device)(torch.zeros(0, 2, 3, device=device))


@pytest.mark.parametrize("V", [4, 50], ids=["table-projected", "rows-projected"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str)
@each_dtype
@each_layer
def test_tokens_give_the_results_of_nn_with_an_embedding(
    place: Place, kind: Kind, options: dict[str, Any], V: int, dtype: torch.dtype
) -> None:
    ours, theirs = kind.pair(5, 6, dtype=dtype, **options)
    table = nn.Embedding(V, 5, dtype=dtype).weight
    tokens = torch.randint(V, (3, 7) if options.get("batch_first") else (7, 3))
    tokens.view(-1)[:2] = V - 1

    def results(run: Any, table: torch.Tensor, module: nn.Module) -> Results:
        out = flatten(run(table))
        leaves = {"table": table, **dict(module.named_parameters())}
        grads = torch.autograd.grad(out, list(leaves.values()), [cases.cotangent(t) for t in out])
        named = {f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)}
        return {**{str(i): t.detach() for i, t in enumerate(out)}, **named}

    theirs = theirs.double()
    expected = results(lambda table: theirs(F.embedding(tokens, table)), widen(table), theirs)
    ours, there = ours.to(place.device), tokens.to(place.device)
    actual = results(lambda table: ours(there, embedding=table), moved(table, place.device), ours)
    assert_same(home(actual), expected, dtype, TOLERANCE[dtype])
    with torch.no_grad():
        again = flatten(ours(there, embedding=moved(table, place.device)))
    assert_same({str(i): t.cpu() for i, t in enumerate(again)}, {str(i): expected[str(i)] for i in range(len(again))},
                dtype, TOLERANCE[dtype])  # fmt: skip


@each_dtype
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
@each_layer
def test_recompute_gives_the_results_without_it(
    place: Place, kind: Kind, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    ours, theirs, x, hx = cases.sample(kind, (5, 4, 3, 17), dtype, **options)
    expected = cases.results(theirs, widen(x), widen(hx))
    lean = kind.ours(3, 17, dtype=dtype, recompute=True, **options)
    lean.load_state_dict(ours.state_dict())
    actual = cases.results(lean.to(place.device), moved(x, place.device), moved(hx, place.device))
    assert_same(home(actual), expected, dtype, TOLERANCE[dtype])


@pytest.mark.any_algorithm
def test_recompute_keeps_less_for_backward(device: str) -> None:
    def kept(recompute: bool) -> int:
        sizes = []
        x = torch.randn(20, 3, 4, device=device, requires_grad=True)
        weights = [p.to(device) for p in nn.LSTM(4, 16).parameters()]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            functional.lstm(x, None, weights, recompute=recompute)
        return sum(sizes)

    assert kept(False) - kept(True) == 20 * 3 * 4 * 16
