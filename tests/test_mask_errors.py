"""Masks that do not fit: what was expected and what was given, by the kernels and by what runs without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import f64
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import functional

T, B, I, H = 5, 3, 2, 4
SIZES = [3, 3, 2]  # of a packed sequence of 8 rows
Call = Callable[[fusedrnn.LSTM], Any]


def of_lengths(lengths: Any) -> Call:
    return lambda m: m(torch.randn(T, B, I), lengths=lengths)


def of_resets(resets: Any, unbatched: bool = False) -> Call:
    return lambda m: m(torch.randn(T, I) if unbatched else torch.randn(T, B, I), resets=resets)


def of_batch_sizes(batch_sizes: Any, rows: int = 8, **masks: Any) -> Call:
    return lambda m: functional.lstm(torch.randn(rows, I), None, list(m.parameters()), batch_sizes=batch_sizes, **masks)


def of_packed(data: Tensor, **options: Any) -> Call:
    return lambda m: m(PackedSequence(data, torch.tensor(SIZES)), **options)


def of_tokens(tokens: Tensor, rows: int, **masks: Any) -> Call:
    return lambda m: m(tokens, embedding=torch.randn(rows, I), **masks)


def of_packed_tokens(tokens: Tensor, rows: int) -> Call:
    return of_packed(tokens, embedding=torch.randn(rows, I))


def falses(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool)


ints = torch.tensor
packed_resets = PackedSequence(falses(8), ints(SIZES))
ORDER = "resets as a PackedSequence with the batch_sizes and the order of the input"
ONE_DEVICE = r"(on one device|on cpu, as x is).*meta"

# What is wrong with it, the call, the error and what it says.
ERRORS: list[tuple[str, Call, type[Exception], str]] = [
    ("lengths-float", of_lengths(ints([1.0, 2.0, 3.0])), RuntimeError, "lengths of integers, got torch.float32"),
    ("lengths-bool", of_lengths(ints([True, True, False])), RuntimeError, "lengths of integers, got torch.bool"),
    ("lengths-list", of_lengths([1, 2, 3]), TypeError, "lengths as a tensor, got list"),
    ("lengths-short", of_lengths(ints([1, 2])), RuntimeError, r"lengths of shape \[3\], got \[2\]"),
    ("lengths-2D", of_lengths(ints([[1, 2, 3]])), RuntimeError, r"(shape \[3\]|1 dimension), got \[1, 3\]"),
    ("lengths-0D", of_lengths(ints(3)), RuntimeError, r"(shape \[3\]|1 dimension), got \[\]"),
    ("lengths-negative", of_lengths(ints([1, -1, 2])), RuntimeError, "lengths from 0 to 5, got -1"),
    ("lengths-beyond-T", of_lengths(ints([1, 6, 2])), RuntimeError, "lengths from 0 to 5, got 6"),
    ("lengths-on-meta", of_lengths(ints([1, 2, 3], device="meta")), RuntimeError, ONE_DEVICE),
    ("lengths-unbatched", lambda m: m(torch.randn(T, I), lengths=ints([1])), RuntimeError, "got unbatched input"),
    ("resets-float", of_resets(torch.zeros(T, B)), RuntimeError, "resets of dtype bool, got [Ff]loat"),
    ("resets-int", of_resets(torch.zeros(T, B, dtype=torch.int64)), RuntimeError, "dtype bool, got (Long|int64)"),
    ("resets-list", of_resets([[True]]), TypeError, "resets as a tensor, got list"),
    ("resets-transposed", of_resets(falses(B, T)), RuntimeError, r"resets of shape \[5, 3\], got \[3, 5\]"),
    ("resets-1D", of_resets(falses(T)), RuntimeError, r"resets of shape \[5, 3\], got \[5\]"),
    ("resets-3D", of_resets(falses(T, B, 1)), RuntimeError, r"resets of shape \[5, 3\], got \[5, 3, 1\]"),
    ("resets-on-meta", of_resets(falses(T, B).to("meta")), RuntimeError, ONE_DEVICE),
    ("resets-2D-unbatched", of_resets(falses(T, 1), True), RuntimeError, r"resets of shape \[5\], got \[5, 1\]"),
    ("resets-0D-unbatched", of_resets(falses(), True), RuntimeError, r"resets of shape \[5\], got \[\]"),
    ("resets-packed", of_resets(packed_resets), RuntimeError, "resets as a tensor, since the input is one"),
    ("packed-resets-tensor", of_packed(torch.randn(8, I), resets=falses(8)), RuntimeError, ORDER),
    (
        "packed-resets-sizes",
        of_packed(torch.randn(8, I), resets=PackedSequence(falses(8), ints([3, 2, 2, 1]))),
        RuntimeError,
        ORDER,
    ),
    (
        "packed-resets-order",
        of_packed(torch.randn(8, I), resets=PackedSequence(falses(8), ints(SIZES), ints([1, 0, 2]))),
        RuntimeError,
        ORDER,
    ),
    (
        "packed-resets-float",
        of_packed(torch.randn(8, I), resets=PackedSequence(torch.zeros(8), ints(SIZES))),
        RuntimeError,
        "resets of dtype bool, got [Ff]loat",
    ),
    ("packed-lengths", of_packed(torch.randn(8, I), lengths=ints([3, 3, 2])), RuntimeError, "has lengths of its own"),
    ("packed-features", of_packed(torch.randn(8, 5)), RuntimeError, "Expected 2, got 5"),
    ("packed-dtype", of_packed(torch.randn(8, I, dtype=f64)), ValueError, r"\(torch.float64\).*\(torch.float32\)"),
    ("packed-hx", of_packed(torch.randn(8, I), hx=(torch.zeros(1, 4),) * 2), RuntimeError, r"3-D but got \(2-D, 2-D\)"),
    ("sizes-increasing", of_batch_sizes(ints([2, 3, 3])), RuntimeError, "do not increase, got 3 for step 1"),
    ("sizes-zero", of_batch_sizes(ints([3, 3, 2, 0])), RuntimeError, "positive .*, got 0 for step 3"),
    ("sizes-negative", of_batch_sizes(ints([5, 4, -1])), RuntimeError, "positive .*, got -1 for step 2"),
    ("sizes-sum", of_batch_sizes(ints([3, 3, 1])), RuntimeError, "of sum 8, the rows of x, got 7"),
    ("sizes-empty", of_batch_sizes(ints([], dtype=torch.int64)), RuntimeError, "of sum 8, the rows of x, got 0"),
    ("sizes-float", of_batch_sizes(ints([3.0, 3.0, 2.0])), RuntimeError, "batch_sizes of dtype int64, got [Ff]loat"),
    ("sizes-int32", of_batch_sizes(ints(SIZES, dtype=torch.int32)), RuntimeError, "of dtype int64, got (Int|int32)"),
    ("sizes-2D", of_batch_sizes(ints([SIZES])), RuntimeError, r"batch_sizes of .*, got \[1, 3\]"),
    ("sizes-0D", of_batch_sizes(ints(8)), RuntimeError, r"batch_sizes of .*, got \[\]"),
    ("sizes-list", of_batch_sizes(SIZES), TypeError, "batch_sizes as a tensor, got list"),
    ("sizes-on-meta", of_batch_sizes(ints(SIZES, device="meta")), RuntimeError, "batch_sizes on the CPU, got meta"),
    ("sizes-and-lengths", of_batch_sizes(ints(SIZES), lengths=ints([3, 3, 2])), RuntimeError, "not both"),
    ("sizes-no-rows", of_batch_sizes(ints([], dtype=torch.int64), 0), RuntimeError, "larger than 0"),
    ("detach-0", lambda m: m(torch.randn(T, B, I), detach_every=0), ValueError, "at least 1, got 0"),
    ("detach-float", lambda m: m(torch.randn(T, B, I), detach_every=1.5), TypeError, "'float' object .* an integer"),
    ("packed-token-beyond-few", of_packed(torch.full((8,), 4), embedding=torch.randn(4, I)), RuntimeError, "3,.*got 4"),
    (
        "packed-token-beyond-many",
        of_packed(torch.full((8,), 9), embedding=torch.randn(9, I)),
        RuntimeError,
        "8,.*got 9",
    ),
    ("packed-tokens-2D", of_packed(torch.ones(8, 1).long(), embedding=torch.randn(4, I)), RuntimeError, "1 dim.*got 2"),
    (
        "packed-tokens-int32",
        of_packed(torch.ones(8).int(), embedding=torch.randn(4, I)),
        RuntimeError,
        "got torch.int32",
    ),
    *(
        (
            f"lengths-of-tokens-{rows}",
            of_tokens(torch.zeros(T, B, dtype=torch.int64), rows, lengths=ints([1, 2])),
            RuntimeError,
            r"lengths of shape \[3\], got \[2\]",
        )
        for rows in (4, 40)
    ),
    *(
        (
            f"token-before-its-end-{rows}",
            of_tokens(ints([[0, 1, 2], [3, -1, 0]]), rows, lengths=ints([1, 2, 1])),
            RuntimeError,
            f"tokens from 0 to {rows - 1}, the rows of the table, got -1",
        )
        for rows in (4, 40)
    ),
]


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize("proj_size", [0, 2], ids=["kernel", "projection"])
@pytest.mark.parametrize("call, error, message", [pytest.param(*row[1:], id=row[0]) for row in ERRORS])
def test_a_mask_that_does_not_fit_is_refused(
    call: Call, error: type[Exception], message: str, proj_size: int, inference: bool
) -> None:
    module = fusedrnn.LSTM(I, H, proj_size=proj_size)
    with torch.inference_mode(inference), pytest.raises(error, match=message):
        call(module)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "name", ["lengths-short", "lengths-beyond-T", "resets-float", "resets-transposed", "sizes-sum", "sizes-and-lengths"]
)
def test_a_mask_that_does_not_fit_is_refused_in_a_graph(name: str) -> None:
    module, (call, _, message) = fusedrnn.LSTM(I, H), next(row[1:] for row in ERRORS if row[0] == name)
    with pytest.raises(Exception, match=message):
        torch.compile(call, backend="aot_eager")(module)


@pytest.mark.parametrize("proj_size", [0, 2], ids=["kernel", "projection"])
@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_token_behind_an_end_may_be_any(proj_size: int, rows: int, grad: bool) -> None:
    """-1 and the like, by which data sets mark what is no token."""
    module = fusedrnn.LSTM(I, H, proj_size=proj_size, bidirectional=True)
    tokens, table, lengths = torch.randint(4, (T, B)), torch.randn(rows, I, requires_grad=True), ints([2, 5, 0])
    marked = tokens.masked_fill(torch.arange(T).unsqueeze(1) >= lengths, -100)
    found = []
    for given in (tokens, marked):
        with torch.set_grad_enabled(grad):
            y, _ = module(given, embedding=table, lengths=lengths)
        found.append([y, *(torch.autograd.grad(y.sum(), [table, *module.parameters()]) if grad else [])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
