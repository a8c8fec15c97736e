"""proj_size: an LSTM whose h is projected to fewer units, as nn.LSTM has it."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import assert_bitwise, assert_same, close, f32, f64, failure, flatten, outputs, results
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import fusedrnn
from fusedrnn import reference

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "dropout": 0.4},
    {"num_layers": 3, "bidirectional": True, "batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True},
]
each_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(autouse=True)
def nn_may_be_slow() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def pair(P: int = 2, dtype: torch.dtype = f64, **options: Any) -> tuple[fusedrnn.LSTM, nn.LSTM]:
    ours, theirs = (make(3, 5, proj_size=P, dtype=dtype, **options) for make in (fusedrnn.LSTM, nn.LSTM))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def example(module: Any, T: int = 4, B: int | None = 3, hx: bool = True, dtype: torch.dtype = f64) -> Any:
    rows = () if B is None else (B,)
    size = (*rows, T, 3) if module.batch_first and B is not None else (T, *rows, 3)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    x = torch.randn(size, dtype=dtype, requires_grad=True)
    if not hx:
        return x, None
    widths = (module.proj_size, module.hidden_size)
    return x, tuple(torch.randn(layers, *rows, width, dtype=dtype, requires_grad=True) for width in widths)


@each_options
def test_agrees_with_nn_under_every_option(options: dict[str, Any]) -> None:
    for T, B, hx, P in itertools.product([1, 2, 7], [3, 1, None], [True, False], [1, 4]):
        ours, theirs = pair(P, **options)
        x, state = example(ours, T, B, hx)
        assert_same(results(ours, x, state, seed=5), results(theirs, x, state, seed=5))


@each_options
def test_agrees_with_the_reference(options: dict[str, Any]) -> None:
    ours, _ = pair(**options)
    theirs = reference.LSTM(3, 5, proj_size=2, dtype=f64, **options)
    theirs.load_state_dict(ours.state_dict())
    for hx in (True, False):
        x, state = example(ours, hx=hx)
        assert_same(results(ours, x, state, seed=5), results(theirs, x, state, seed=5))


@each_options
def test_float32_agrees_with_nn(options: dict[str, Any]) -> None:
    ours, theirs = pair(dtype=f32, **options)
    x, state = example(ours, 16, 7, dtype=f32)
    assert_same(results(ours, x, state, seed=5), results(theirs, x, state, seed=5), f32)


def test_constructor_makes_the_parameters_of_nn() -> None:
    torch.manual_seed(3)
    theirs = nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    torch.manual_seed(3)
    ours = fusedrnn.LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    assert repr(ours) == repr(theirs)
    assert_bitwise(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_fuse_and_unfuse_keep_it() -> None:
    model = nn.Sequential(nn.LSTM(3, 5, proj_size=2, dtype=f64))
    x = torch.randn(4, 2, 3, dtype=f64)
    expected = dict(enumerate(flatten(model(x))))
    assert type(fusedrnn.fuse(model)[0]) is fusedrnn.LSTM
    for i, actual in enumerate(flatten(model(x))):
        close(i, actual, expected[i], 1e-13)
    assert type(fusedrnn.unfuse(model)[0]) is nn.LSTM
    assert_bitwise(dict(enumerate(flatten(model(x)))), expected)


WRONG_STATES = [((1, 3, 5), (1, 3, 5)), ((1, 3, 2), (1, 3, 2)), ((1, 4, 2), (1, 4, 5)), ((2, 3, 2), (2, 3, 5))]


@pytest.mark.parametrize("sizes", WRONG_STATES, ids=str)
def test_a_state_of_a_wrong_size_raises_what_nn_raises(sizes: Any) -> None:
    ours, theirs = pair()
    x = torch.randn(4, 3, 3, dtype=f64)
    hx = tuple(torch.zeros(size, dtype=f64) for size in sizes)
    actual, expected = (failure(lambda m=m: m(x, hx)) for m in (ours, theirs))
    assert type(actual) is type(expected) and str(actual) == str(expected)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"])
def test_a_weight_of_a_wrong_shape_is_refused(name: str) -> None:
    ours, _ = pair()
    setattr(ours, name, nn.Parameter(torch.randn(7, 9, dtype=f64)))
    with pytest.raises(RuntimeError, match=r"Expected w_\w+ of shape \[\d+, \d\], got \[\d+, \d\]"):
        ours(torch.randn(4, 3, 3, dtype=f64))


def test_recompute_keeps_what_it_is_given_and_no_more() -> None:
    """The same results to the bit, for the memory of one step."""
    module, _ = pair(num_layers=2, bidirectional=True)
    x, state = example(module, 40)

    def kept(recompute: bool) -> int:
        module.recompute = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            module(x, state)
        return sum(sizes)

    assert kept(True) < kept(False) / 4
    module.recompute = True
    expected = results(module, x, state)
    module.recompute = False
    assert_bitwise(results(module, x, state), expected)


def test_zero_steps_and_an_empty_batch_are_as_in_nn() -> None:
    ours, theirs = pair()
    actual, expected = (failure(lambda m=m: m(torch.randn(0, 3, 3, dtype=f64))) for m in (ours, theirs))
    assert type(actual) is type(expected) and str(actual) == str(expected)
    x, state = example(ours, B=0)
    assert {k: v.shape for k, v in outputs(ours, x, state).items()} == {
        k: v.shape for k, v in outputs(theirs, x, state).items()
    }


def test_tokens_pick_the_rows_of_their_table() -> None:
    ours, theirs = pair(bidirectional=True)
    table, tokens = torch.randn(6, 3, dtype=f64, requires_grad=True), torch.randint(6, (5, 4))
    actual, expected = ours(tokens, embedding=table)[0], theirs(nn.functional.embedding(tokens, table))[0]
    close("y", actual, expected, 1e-13)
    close("table", *(torch.autograd.grad(y.sin().sum(), table)[0] for y in (actual, expected)), 1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_half_types_agree_with_float32(half: torch.dtype) -> None:
    module, _ = pair(dtype=f32)
    x, state = example(module, dtype=f32)
    exact = module(x, state)[0]
    with torch.autocast("cpu", half):
        cast = module(x, state)[0]
    plain = copy.deepcopy(module).to(half)(x.to(half), tuple(s.to(half) for s in state))[0]
    assert cast.dtype == plain.dtype == half
    for y in (cast, plain):
        close("y", y.float(), exact, 0.02)


def test_derivatives_of_first_and_second_order_agree_with_finite_differences() -> None:
    module, _ = pair()
    x, (h, c) = example(module, T=3, B=2)
    names, weights = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, weights, strict=True))
        return tuple(flatten(torch.func.functional_call(module, given, (x, (h, c)))))

    assert gradcheck(run, (x, h, c, *weights), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(run, (x, h, c, *weights), fast_mode=True)


def test_per_sample_gradients_are_those_of_each_sample() -> None:
    module, _ = pair()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    samples = torch.randn(3, 4, 1, 3, dtype=f64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,))[0].sin().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, samples)
    for i, x in enumerate(samples):
        for name, expected in torch.func.grad(loss)(parameters, x).items():
            close(name, together[name][i], expected, 1e-13)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_into_one_graph() -> None:
    module, _ = pair(num_layers=2, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, state = example(module)
    assert_same(results(compiled, x, state), results(module, x, state))
