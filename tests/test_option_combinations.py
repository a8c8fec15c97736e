"""Every option of the layers and of their calls with every two others: what the reference and nn.* give, or errors."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import LAYERS, Kind, assert_same, cotangent, f32, f64, flatten, widen
from combinations import cover
from mask_cases import by_reference, drawn_packed, drawn_resets, widened
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

bf16 = torch.bfloat16
T, I, H, V = 6, 3, 5, 4
LENGTHS = {"packed": [6, 2, 5, 2], "packed sorted": [6, 5, 2, 2]}
B = 4

# The first value of each option goes with all others.
OPTIONS: dict[str, list[Any]] = {
    "kind": LAYERS,
    "num_layers": [1, 2, 3],
    "bidirectional": [False, True],
    "batch_first": [False, True],
    "bias": [True, False],
    "dropout": [0.0, 0.5],
    "recompute": [False, True],
    "weight_drop": [0.0, 0.3],
    "proj_size": [0, 2],
    "input": ["batch", "unbatched", "packed", "packed sorted"],
    "rows": [None, 4, 60],  # of the table that tokens pick from: fewer and more than there are tokens
    "hx": [False, True],
    "resets": [False, True],
    "lengths": [False, True],
    "detach_every": [None, 2],
    "return_states": [False, True],
    "dtype": [f64, f32, bf16],
}

ERRORS: list[tuple[dict[str, list[Any]], type[Exception], str]] = [
    (
        {"kind": LAYERS[1:], "proj_size": [2]},
        ValueError,
        "proj_size argument is only supported for LSTM, not RNN or GRU",
    ),
    ({"kind": LAYERS[1:], "return_states": [True]}, TypeError, "unexpected keyword argument 'return_states'"),
    ({"bidirectional": [True], "detach_every": [2]}, ValueError, "bidirectional layer cannot be truncated in one call"),
    ({"input": ["unbatched"], "lengths": [True]}, RuntimeError, "lengths are those of a batch; got unbatched input"),
    (
        {"input": ["packed", "packed sorted"], "lengths": [True]},
        RuntimeError,
        "A PackedSequence has lengths of its own; expected lengths=None",
    ),
]
FORBIDDEN = {
    frozenset(zip(values, pair, strict=True)): (error, message)
    for values, error, message in ERRORS
    for pair in itertools.product(*values.values())
}
ROWS = cover(OPTIONS, FORBIDDEN, strength=3)


def named(row: dict[str, Any]) -> str:
    """The values that are not the first of their option."""
    return "-".join(f"{name}={row[name]}" for name in row if row[name] != OPTIONS[name][0]) or "defaults"


@pytest.fixture(autouse=True)
def nn_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dropout option adds dropout after all but last")
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


class Call:
    """The layer and the arguments of one row."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row, self.packed = row, row["input"].startswith("packed")
        self.masked = bool(row["resets"] or row["lengths"] or row["detach_every"] or row["return_states"])
        of_nn = {n: row[n] for n in ("num_layers", "bidirectional", "batch_first", "bias", "dropout")}
        of_nn |= {"proj_size": row["proj_size"]} if row["proj_size"] else {}
        dtype = row["dtype"]
        kind: Kind = row["kind"]
        self.module = kind.ours(I, H, dtype=dtype, recompute=row["recompute"], weight_drop=row["weight_drop"], **of_nn)
        self.theirs = kind.theirs(I, H, dtype=f64, **of_nn)
        self.theirs.load_state_dict(self.module.state_dict())
        self.table = torch.randn(row["rows"], I, dtype=dtype, requires_grad=True) if row["rows"] else None
        self.input = self.drawn_input()
        self.hx = self.drawn_state() if row["hx"] else None
        self.masks: dict[str, Any] = {}
        if row["resets"]:
            self.masks["resets"] = self.like_input(drawn_resets(*self.steps()))
        if row["lengths"]:
            self.masks["lengths"] = torch.tensor([6, 0, 4, 1], dtype=torch.int32)
        for name in ("detach_every", "return_states"):
            if row[name]:
                self.masks[name] = row[name]

    def steps(self) -> tuple[int, ...]:
        if self.packed:
            return (sum(LENGTHS[self.row["input"]]),)
        return (T,) if self.row["input"] == "unbatched" else (B, T) if self.row["batch_first"] else (T, B)

    def like_input(self, data: Tensor) -> Any:
        if not self.packed:
            return data
        return PackedSequence(data, *drawn_packed(LENGTHS[self.row["input"]], 1)[1:])

    def drawn_input(self) -> Any:
        if self.table is not None:
            return self.like_input(torch.randint(len(self.table), self.steps()))
        return self.like_input(torch.randn(*self.steps(), I, dtype=self.row["dtype"], requires_grad=True))

    def drawn_state(self) -> Any:
        layers = self.row["num_layers"] * (2 if self.row["bidirectional"] else 1)
        rows = () if self.row["input"] == "unbatched" else (B,)
        widths = (self.row["proj_size"] or H, H)[: len(self.row["kind"].states)]
        hx = [torch.randn(layers, *rows, width, dtype=self.row["dtype"], requires_grad=True) for width in widths]
        return tuple(hx) if len(hx) == 2 else hx[0]

    def results(self, run: Any, wide: bool, with_gradients: bool) -> dict[str, Tensor]:
        """Outputs, and gradients of all that requires one, of run(input, hx, table), in float64 where wide."""
        table, hx, input = self.table, self.hx, self.input
        parameters = widened(self.module) if wide else dict(self.module.named_parameters())
        if wide:
            table, hx = widen(table), widen(hx)
            if table is None:
                input = self.like_input(widen(flatten(input)[0]))
        leaves = {"x": flatten(input)[0] if table is None else table, **parameters}
        leaves |= {f"hx{i}": h for i, h in enumerate(flatten(hx))}
        torch.manual_seed(5)
        out = flatten(run(input, hx, table, parameters))
        found = {str(i): t.detach() for i, t in enumerate(out)}
        if with_gradients:
            grads = torch.autograd.grad(out, list(leaves.values()), [cotangent(t) for t in out])
            found |= {f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)}
        return found

    def ours(self, input: Any, hx: Any, table: Tensor | None, _: Any) -> Any:
        return self.module(input, hx, embedding=table, **self.masks)

    def reference(self, input: Any, hx: Any, table: Tensor | None, parameters: dict[str, Tensor]) -> Any:
        return by_reference(self.module, input, hx, parameters=parameters, embedding=table, **self.masks)

    def nn(self, input: Any, hx: Any, table: Tensor | None, parameters: dict[str, Tensor]) -> Any:
        if table is not None:
            embedded = F.embedding(flatten(input)[0], table)
            input = PackedSequence(embedded, *input[1:]) if self.packed else embedded
        return torch.func.functional_call(self.theirs, parameters, (input, hx))


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_any_three_options_give_the_results_of_the_reference_and_of_nn(row: dict[str, Any]) -> None:
    call = Call(row)
    drops = row["dropout"] and row["num_layers"] > 1
    # Dropout draws other numbers in each dtype, and on packed rows nn.*'s own, which the reference does not.
    train = row["dtype"] == f64 and not (call.packed and drops and (call.masked or row["weight_drop"]))
    call.module.train(train), call.theirs.train(train)
    oracles = [call.reference] if not (train and call.packed and drops) else []
    oracles += [call.nn] if not call.masked and not (train and row["weight_drop"]) else []
    # A float32 ReLU may be on the other side of its kink than float64; half types round gradients of many steps.
    with_gradients = row["dtype"] == f64 or (row["dtype"] == f32 and not row["kind"].is_relu)
    actual = call.results(call.ours, False, with_gradients)
    tolerance = {f64: 1e-11, f32: 5e-5, bf16: 0.12 if row["proj_size"] else 0.03}[row["dtype"]]
    assert oracles
    for oracle in oracles:
        expected = call.results(oracle, True, with_gradients)
        assert_same(actual, expected, row["dtype"], tolerance, floor=0.1)


@pytest.mark.parametrize("pair", FORBIDDEN, ids=lambda pair: "-".join(f"{k}={v}" for k, v in sorted(pair, key=str)))
def test_what_excludes_each_other_is_refused(pair: frozenset[tuple[str, Any]]) -> None:
    error, message = FORBIDDEN[pair]
    with pytest.raises(error, match=re.escape(message)):
        call = Call({name: values[0] for name, values in OPTIONS.items()} | dict(pair))
        call.ours(call.input, call.hx, call.table, None)


def test_every_three_values_that_are_allowed_stand_in_one_row() -> None:
    met = {frozenset(some) for row in ROWS for some in itertools.combinations(row.items(), 3)}
    for names in itertools.combinations(OPTIONS, 3):
        for values in itertools.product(*(OPTIONS[name] for name in names)):
            items = frozenset(zip(names, values, strict=True))
            forbidden = any(pair <= items for pair in FORBIDDEN)
            assert (items in met) != forbidden, items
