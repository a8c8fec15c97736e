"""Wrong use: the modules raise what nn.* raises, and say what they do not serve."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import (
    CELLS,
    LAYERS,
    LSTMS,
    MODULES,
    SOME_OPTIONS,
    Kind,
    call,
    each_cell,
    each_layer,
    each_module,
    f32,
    f64,
    failure,
    on_meta,
)
from torch import Tensor, nn

import fusedrnn

nan = float("nan")


def anonymous(error: Exception) -> str:
    """The message without the class that Python says a missing argument is missing from."""
    return re.sub(r"\w+\.(__init__|forward)", r"\1", str(error))


class BadConstructor(NamedTuple):
    kinds: list[Kind]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


BAD_CONSTRUCTORS = [
    *(BadConstructor(LAYERS, (3, 4), {"dropout": p}) for p in (1.5, -0.1, True, nan, "0.1", "high")),
    *(BadConstructor(LAYERS, (3, 4), {"bias": bias}) for bias in (1, None, "True")),
    *(BadConstructor(LAYERS, (3, 4), {"batch_first": batch_first}) for batch_first in (0, "x")),
    *(BadConstructor(LAYERS, (size, 4), {}) for size in (3.0, "3", 0, -1)),
    *(BadConstructor(LAYERS, (3, size), {}) for size in (4.0, "4", 0, -1)),
    *(BadConstructor(LAYERS, (3, 4, count), {}) for count in (0, -1)),
    BadConstructor(LAYERS, (3, 0), {"dropout": 2.0, "bias": 1}),
    BadConstructor(LAYERS, (3, 0), {"bias": 1}),
    *(BadConstructor(LAYERS, (3, 4), {"proj_size": size}) for size in (-1, 4, 5)),
    BadConstructor(LAYERS[1:], (3, 4), {"proj_size": 0}),
    BadConstructor(LAYERS[1:], (3, 4), {"proj_size": 2}),
    BadConstructor(MODULES[:2], (3, 4), {"nonlinearity": "relu"}),
    BadConstructor(MODULES, (), {}),
    BadConstructor(MODULES, (3,), {}),
    BadConstructor(MODULES, (3, 4), {"input_size": 3}),
    BadConstructor(MODULES, (3, 4), {"unknown": 1}),
    BadConstructor(MODULES, (3, 4), {"dtype": torch.int64}),
    BadConstructor(CELLS, (3, -1), {}),
    BadConstructor(CELLS, (3, 4.0), {}),
    BadConstructor(CELLS, ("3", 4), {}),
    BadConstructor(CELLS, (3, 4), {"num_layers": 1}),
]


@pytest.mark.parametrize(
    "kind, args, kwargs",
    [
        pytest.param(kind, bad.args, bad.kwargs, id=f"{kind!r}-{bad.args}-{bad.kwargs}")
        for bad in BAD_CONSTRUCTORS
        for kind in bad.kinds
    ],
)
def test_constructor_refuses_what_nn_refuses(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    theirs, ours = (failure(lambda make=make: make(*args, **kwargs)) for make in (kind.theirs, kind.ours))
    assert type(ours) is type(theirs)
    assert anonymous(ours) == anonymous(theirs)


@pytest.mark.parametrize("nonlinearity", ["gelu", True, None])
def test_constructor_refuses_an_unknown_nonlinearity(nonlinearity: Any) -> None:
    theirs, ours = (failure(lambda make=make: make(3, 4, nonlinearity=nonlinearity)) for make in (nn.RNN, fusedrnn.RNN))
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


def rand(*size: int, dtype: torch.dtype = f64, device: str = "cpu") -> Tensor:
    return torch.randn(size, dtype=f64).to(dtype).to(device)


class BadCall(NamedTuple):
    """A call that nn.* refuses. `message` is what ours must say where nn.*'s own words do not name both values."""

    id: str
    kinds: list[Kind]
    options: dict[str, Any]
    run: Callable[[Kind, Any], Any]
    message: str | None = None


def both(first: str, second: str) -> str:
    return rf"(?s)(?=.*({first}))(?=.*({second}))"


DTYPES = both(r"float64|\bDouble\b", r"float32|\bFloat\b")
DEVICES = both("meta", "cpu")
WRONG_RANK = "hidden0"  # the rest of the sentence differs between releases of torch

# Modules are float64 with I = 3, H = 4.
BAD_CALLS = [
    *(BadCall(f"input{list(s)}", LAYERS, {}, lambda k, m, s=s: m(rand(*s))) for s in [(), (3,), (2, 2, 2, 3)]),
    *(BadCall(f"input{list(s)}", LAYERS, {}, lambda k, m, s=s: m(rand(*s))) for s in [(5, 2, 7), (5, 7), (5, 2, 0)]),
    *(
        BadCall(f"input-{dtype}", LAYERS, {}, lambda k, m, dtype=dtype: m(rand(5, 2, 3, dtype=dtype)))
        for dtype in (f32, torch.float16, torch.bfloat16, torch.int64, torch.complex64)
    ),
    BadCall("input-on-meta", LAYERS, {}, lambda k, m: m(rand(5, 2, 3, device="meta")), DEVICES),
    BadCall("input-list", MODULES, {}, lambda k, m: m([[1.0]])),
    BadCall("input-None", MODULES, {}, lambda k, m: m(None)),
    BadCall("no-input", MODULES, {}, lambda k, m: m()),
    BadCall("hx-2D", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(2, 4))),
    BadCall("hx-4D", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 2, 1, 4))),
    BadCall("hx-3D-unbatched", LAYERS, {}, lambda k, m: m(rand(5, 3), k.hidden(1, 1, 4))),
    BadCall("hx-1D-unbatched", LAYERS, {}, lambda k, m: m(rand(5, 3), k.hidden(4))),
    BadCall("hx-hidden-size", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 2, 5))),
    BadCall("hx-batch-size", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 3, 4))),
    BadCall("hx-one-row", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 1, 4))),
    BadCall("hx-layers", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(2, 2, 4))),
    BadCall("hx-layers-unbatched", LAYERS, {}, lambda k, m: m(rand(5, 3), k.hidden(2, 4))),
    BadCall("hx-size-unbatched", LAYERS, {}, lambda k, m: m(rand(5, 3), k.hidden(1, 5))),
    BadCall("hx-batch_first", LAYERS, {"batch_first": True}, lambda k, m: m(rand(2, 5, 3), k.hidden(1, 5, 4))),
    BadCall("hx-bidirectional", LAYERS, {"bidirectional": True}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 2, 4))),
    BadCall("hx-dtype", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), k.hidden(1, 2, 4, dtype=f32)), DTYPES),
    BadCall("input-and-hx-size", LAYERS, {}, lambda k, m: m(rand(5, 2, 7), k.hidden(1, 2, 5))),
    BadCall("input-dtype-and-hx-size", LAYERS, {}, lambda k, m: m(rand(5, 2, 3, dtype=f32), k.hidden(1, 2, 5))),
    BadCall("input-dtype-and-hx-dim", LAYERS, {}, lambda k, m: m(rand(5, 2, 3, dtype=f32), k.hidden(2, 4))),
    BadCall("hx-on-meta", LAYERS, {}, lambda k, m: m(rand(5, 2, 3), on_meta(k.hidden(1, 2, 4))), DEVICES),
    BadCall("hx-tuple", LAYERS[1:], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4),))),
    BadCall("hx-one-tensor", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4),))),
    BadCall("hx-no-tensor", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), ())),
    BadCall("hx-three-tensors", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4),) * 3)),
    BadCall("hx-None-inside", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4), None))),
    BadCall("c-size", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4), rand(1, 2, 5)))),
    BadCall("c-dim", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), (rand(1, 2, 4), rand(2, 4)))),
    BadCall("hx-stacked", LAYERS[:1], {}, lambda k, m: m(rand(5, 2, 3), rand(2, 1, 2, 4)), "(?i)tensor"),
    *(BadCall(f"input{list(s)}", CELLS, {}, lambda k, m, s=s: m(rand(*s))) for s in [(), (2, 2, 3), (2, 7), (7,)]),
    BadCall("input-dtype", CELLS, {}, lambda k, m: m(rand(2, 3, dtype=f32)), DTYPES),
    BadCall("input-on-meta", CELLS, {}, lambda k, m: m(rand(2, 3, device="meta")), DEVICES),
    BadCall("hx-0D", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden())),
    BadCall("hx-3D", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(1, 2, 4))),
    BadCall("hx-hidden-size", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(2, 5))),
    BadCall("hx-hidden-size-unbatched", CELLS, {}, lambda k, m: m(rand(3), k.hidden(5))),
    BadCall("hx-batch-size", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(5, 4))),
    BadCall("hx-one-row", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(1, 4))),
    BadCall("hx-empty-batch", CELLS, {}, lambda k, m: m(rand(0, 3), k.hidden(2, 4))),
    BadCall("hx-1D-for-2D", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(4)), WRONG_RANK),
    BadCall("hx-1D-for-one-row", CELLS, {}, lambda k, m: m(rand(1, 3), k.hidden(4)), WRONG_RANK),
    BadCall("hx-2D-for-1D", CELLS, {}, lambda k, m: m(rand(3), k.hidden(2, 4)), WRONG_RANK),
    BadCall("input-and-hx-size", CELLS, {}, lambda k, m: m(rand(2, 7), k.hidden(5, 5))),
    BadCall("hx-both-sizes", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(5, 5))),
    BadCall("hx-dtype", CELLS, {}, lambda k, m: m(rand(2, 3), k.hidden(2, 4, dtype=f32)), DTYPES),
    BadCall("hx-tuple", CELLS[1:], {}, lambda k, m: m(rand(2, 3), (rand(2, 4),))),
    BadCall("hx-one-tensor", CELLS[:1], {}, lambda k, m: m(rand(2, 3), (rand(2, 4),))),
    BadCall("hx-stacked", CELLS[:1], {}, lambda k, m: m(rand(2, 3), rand(2, 2, 4)), "(?i)tensor"),
    BadCall("hx-three-tensors", CELLS[:1], {}, lambda k, m: m(rand(2, 3), (rand(2, 4),) * 3)),
    BadCall("c-hidden-size", CELLS[:1], {}, lambda k, m: m(rand(2, 3), (rand(2, 4), rand(2, 5)))),
    BadCall("c-batch-size", CELLS[:1], {}, lambda k, m: m(rand(2, 3), (rand(2, 4), rand(5, 4)))),
    BadCall("c-3D", CELLS[:1], {}, lambda k, m: m(rand(2, 3), (rand(2, 4), rand(2, 1, 4)))),
]


@pytest.mark.parametrize(
    "kind, bad", [pytest.param(kind, bad, id=f"{kind!r}-{bad.id}") for bad in BAD_CALLS for kind in bad.kinds]
)
def test_wrong_call_raises_what_nn_raises(kind: Kind, bad: BadCall) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64, **bad.options)
    expected, actual = failure(lambda: bad.run(kind, theirs)), failure(lambda: bad.run(kind, ours))
    assert type(actual) is type(expected)
    if bad.message is None:
        assert anonymous(expected) in anonymous(actual)
    else:
        assert re.search(bad.message, str(actual))


@each_module
@pytest.mark.parametrize("replacement", [rand(7, 4), rand(16, 9), rand(4, 16)], ids=lambda t: str(list(t.shape)))
def test_weight_of_a_wrong_shape_is_refused(kind: Kind, replacement: Tensor) -> None:
    module = kind.ours(3, 4, dtype=f64)
    setattr(module, kind.parameter("weight_hh"), nn.Parameter(replacement))
    with pytest.raises(RuntimeError, match=r"(?s)\d.*\d"):
        call(module, *kind.example(module, hx=False))


@each_module
def test_weights_of_two_dtypes_are_refused(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    getattr(module, kind.parameter("weight_hh")).data = getattr(module, kind.parameter("weight_hh")).data.float()
    with pytest.raises(RuntimeError, match=DTYPES):
        call(module, x, hx)


@pytest.mark.parametrize("kind", LSTMS, ids=repr)
def test_c_of_another_dtype_is_refused_where_nn_would_promote(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, (h, c) = kind.example(module)
    with pytest.raises(RuntimeError, match=DTYPES):
        module(x, (h, c.float()))


@each_cell
def test_one_state_as_long_as_the_batch_is_refused(kind: Kind) -> None:
    """nn.* compares the batch with the only size there is; releases of torch differ in the class of error."""
    with pytest.raises(RuntimeError, match=both("hidden0", "1D")):
        kind.ours(3, 4, dtype=f64)(rand(4, 3), kind.hidden(4))


def test_unknown_nonlinearity_of_a_cell_is_refused_when_it_is_called() -> None:
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
        fusedrnn.RNNCell(3, 4, nonlinearity="gelu")(rand(2, 3, dtype=f32))


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("B", [3, 0, None])
@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
@each_layer
def test_zero_steps_are_refused_as_in_nn(kind: Kind, options: dict[str, Any], B: int | None, hx: bool) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64, **options)
    x, state = kind.example(ours, T=0, B=B, hx=hx)
    expected, actual = (failure(lambda m=m: call(m, x, state)) for m in (theirs, ours))
    assert type(actual) is type(expected) is RuntimeError
    assert str(actual) == str(expected)


@each_module
def test_unserved_dtype_says_what_to_use(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=torch.complex64)
    x, hx = kind.example(module, dtype=torch.complex64)
    with pytest.raises(NotImplementedError, match=both("complex64", "float32")):
        call(module, x, hx)
