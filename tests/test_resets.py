"""resets=: states that are zeroed inside a sequence, in one call, against split sequences and the reference."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import LAYERS, Kind, assert_same, cotangent, each_layer, f32, f64, flatten
from mask_cases import by_reference, drawn_resets, gradients, leaves_of
from op_cases import SIZES, arguments, largest_error
from torch import Tensor

from fusedrnn import reference
from fusedrnn.autograd import FUNCTIONS
from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_recompute = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
# Backward works on about 1024 rows at a time.
LONG = [(700, 3, 2, 5), (23, 96, 2, 17), (2, 1100, 1, 3), (1, 2500, 2, 1)]


def split_and_loop(module: Any, x: Tensor, hx: Any, resets: Tensor) -> Any:
    """Each entry on its own, cut where it is reset: what one does without resets. Time first, one direction."""
    ys, ends = [], []
    for b in range(x.shape[1]):
        state = tuple(h[:, b : b + 1] for h in flatten(hx))
        rows, cuts = [], [0, *resets[:, b].nonzero().flatten().tolist(), x.shape[0]]
        for begin, end in pairwise(cuts):
            if begin < x.shape[0] and resets[begin, b]:
                state = tuple(torch.zeros_like(h) for h in state)
            if begin == end:
                continue
            y, out = module(x[begin:end, b : b + 1], state if len(state) == 2 else state[0])
            rows.append(y)
            state = tuple(flatten(out))
        ys.append(torch.cat(rows))
        ends.append(state)
    states = tuple(torch.cat(s, 1) for s in zip(*ends, strict=True))
    return torch.cat(ys, 1), states if len(states) == 2 else states[0]


@each_layer
@each_recompute
@pytest.mark.parametrize("num_layers", [1, 2])
def test_resets_are_split_sequences(kind: Kind, num_layers: int, recompute: bool) -> None:
    module = kind.ours(3, 17, num_layers, dtype=f64, recompute=recompute)
    x, hx = kind.example(module, 13, 4)
    resets = drawn_resets(13, 4)
    resets[0, 1] = resets[4:7, 2] = resets[12, 3] = True
    leaves = leaves_of(module, x, hx)
    assert_same(
        gradients(module(x, hx, resets=resets), leaves), gradients(split_and_loop(module, x, hx, resets), leaves)
    )


@each_layer
def test_resets_of_a_whole_batch_are_split_sequences_to_the_bit(kind: Kind) -> None:
    module = kind.ours(5, 33, dtype=f32)
    x, hx = kind.example(module, 20, 7, dtype=f32)
    resets = torch.zeros(20, 7, dtype=torch.bool)
    resets[8] = True
    y, end = module(x, hx, resets=resets)
    first, _ = module(x[:8], hx)
    second, right = module(x[8:])
    assert torch.equal(y, torch.cat([first, second]))
    assert all(torch.equal(a, b) for a, b in zip(flatten(end), flatten(right), strict=True))


@pytest.mark.parametrize("size", [(7, 3, 3, 17), *LONG], ids=str)
@each_layer
@each_recompute
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "bidirectional": True}, {"num_layers": 2, "bidirectional": True, "bias": False}],
    ids=str,
)
def test_resets_agree_with_the_reference(kind: Kind, size: Any, options: Any, recompute: bool) -> None:
    T, B, I, H = size
    module = kind.ours(I, H, dtype=f64, recompute=recompute, **options)
    x, hx = kind.example(module, T, B)
    resets = drawn_resets(B, T) if module.batch_first else drawn_resets(T, B)
    leaves = leaves_of(module, x, hx)
    found = gradients(module(x, hx, resets=resets), leaves)
    assert_same(found, gradients(by_reference(module, x, hx, resets=resets), leaves), tolerance=1e-11)


@each_cell
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", [f32, torch.bfloat16, torch.float16], ids=str)
def test_operators_agree_with_the_reference_on_awkward_sizes(cell: str, reverse: bool, dtype: torch.dtype) -> None:
    for T, B, I, H in SIZES:
        args = arguments(cell, (T, B, I, H), dtype, requires_grad=True)
        if cell == "rnn_relu":
            args = args._replace(b_ih=torch.full_like(args.b_ih, 6.0).requires_grad_())  # clear of the kink
        resets = drawn_resets(T, B)
        y, h_n, *_ = FUNCTIONS[cell].apply(cell, *args, None, False, reverse, False, None, None, resets, 0)
        wide = [None if t is None else t.detach().double().requires_grad_() for t in args]
        states = tuple(s for s in wide[1:3] if s is not None)
        right, end = reference.layer(cell, wide[0], states, wide[3:], reverse=reverse, resets=resets)
        given = args.given()
        grads = torch.autograd.grad([y, h_n], given, [cotangent(y), cotangent(h_n)])
        leaves = [t for t in wide if t is not None]
        rights = torch.autograd.grad([right, end[0]], leaves, [cotangent(y).double(), cotangent(h_n).double()])
        tolerance = 2e-5 if dtype == f32 else 0.03
        ours = {str(i): t.detach() for i, t in enumerate((y, h_n, *grads))}
        theirs = {str(i): t.detach() for i, t in enumerate((right, end[0], *rights))}
        errors = largest_error(ours, theirs)
        assert max(errors.values()) < tolerance, (T, B, I, H, errors)


@each_layer
@each_recompute
def test_nothing_passes_a_reset(kind: Kind, recompute: bool) -> None:
    H = 16
    module = kind.ours(3, H, bidirectional=True, dtype=f64, recompute=recompute)
    x, hx = kind.example(module, 6, 3)
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[3, 1] = True  # between steps 2 and 3 in one direction, 4 and 3 in the other
    for steps, units, earlier in [(slice(3, 6), slice(H), slice(3)), (slice(4), slice(H, 2 * H), slice(4, 6))]:
        for given, passes in [(None, True), (resets, False)]:
            (dx,) = torch.autograd.grad(module(x, hx, resets=given)[0][steps, 1, units].sum(), x)
            assert (dx[earlier, 1].abs().max() > 0) == passes
    grads = torch.autograd.grad(module(x, hx, resets=torch.ones(6, 3, dtype=torch.bool))[0].sum(), flatten(hx))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)
    with torch.no_grad():
        x[2, 1], x[4, 1] = float("nan"), float("inf")
    y, _ = module(x, hx, resets=resets)
    assert y[3, 1].isfinite().all() and not y[2, 1].isfinite().all()


@each_layer
def test_resets_in_inference_and_unbatched(kind: Kind) -> None:
    module = kind.ours(3, 5, 2, dtype=f64)
    x, hx = kind.example(module, 6, 2)
    resets = drawn_resets(6, 2)
    right = flatten(module(x, hx, resets=resets))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(flatten(module(x, hx, resets=resets)), right, strict=True))
    one = tuple(h[:, 1] for h in flatten(hx))
    y, _ = module(x[:, 1], one if len(one) == 2 else one[0], resets=resets[:, 1])
    torch.testing.assert_close(y, right[0][:, 1], rtol=0, atol=1e-13)


@each_layer
def test_resets_of_tokens_are_those_of_their_embedding(kind: Kind) -> None:
    module = kind.ours(3, 17, dtype=f64)
    for V in (4, 200):  # a table that is projected, and rows that are picked
        table, tokens = torch.randn(V, 3, dtype=f64, requires_grad=True), torch.randint(V, (9, 4))
        resets = drawn_resets(9, 4)
        leaves = {"table": table, **dict(module.named_parameters())}
        found = gradients(module(tokens, embedding=table, resets=resets), leaves)
        rows = torch.nn.functional.embedding(tokens, table)
        assert_same(found, gradients(module(rows, resets=resets), leaves))


@pytest.mark.parametrize(
    "resets, message",
    [
        (torch.zeros(5, 3), "resets of dtype bool, got Float"),
        (torch.zeros(3, 5, dtype=torch.bool), r"resets of shape \[5, 3\], got \[3, 5\]"),
        (torch.zeros(5, dtype=torch.bool), r"resets of shape \[5, 3\], got \[5\]"),
    ],
    ids=["dtype", "transposed", "without the batch"],
)
def test_resets_that_do_not_fit_are_refused(resets: Tensor, message: str) -> None:
    module = LAYERS[0].ours(2, 3)
    with pytest.raises(RuntimeError, match=message):
        module(torch.randn(5, 3, 2), resets=resets)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
        module(torch.randn(5, 3, 2), resets=resets)
