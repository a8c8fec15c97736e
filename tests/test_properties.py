"""Random modules, shapes, memory layouts, dtypes and states: results are those of nn.*, whatever is drawn.

``HYPOTHESIS_PROFILE=long`` runs twenty times as many examples, of random seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, LAYERS, Kind, assert_same, close, f32, f64, flatten, outputs, results, widen
from torch import Tensor

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
bf16, f16 = torch.bfloat16, torch.float16


def examples(count: int) -> Any:
    return settings(
        max_examples=20 * count if LONG else count,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# The same numbers in other places of memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t.clone(),
    "first two dimensions swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t,
    "columns apart": lambda t: torch.stack([t, t + 1], -1).flatten(-2)[..., ::2],
    "rows apart": lambda t: torch.stack([t, t - 1], -2).flatten(-3, -2)[..., ::2, :] if t.dim() > 1 else t.clone(),
    "with a margin": lambda t: torch.nn.functional.pad(t, (1, 2), value=9.0)[..., 1:-2],
    "at an odd address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}
layouts = st.sampled_from(list(LAYOUTS))
sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 40]))


def laid(draw: Any, tree: Any) -> Any:
    if tree is None:
        return None
    if not isinstance(tree, Tensor):
        return tuple(laid(draw, branch) for branch in tree)
    t = LAYOUTS[draw(layouts)](tree.detach())
    assert torch.equal(t, tree)
    return t.requires_grad_(draw(st.booleans()))


@st.composite
def layer_cases(draw: Any) -> tuple[Any, Any, Tensor, Any, bool]:
    """Ours, nn.*'s in float64, input and state, and whether to train."""
    kind = draw(st.sampled_from(LAYERS))
    num_layers = draw(st.integers(1, 3))
    options = {
        "num_layers": num_layers,
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.5])) if num_layers > 1 else 0.0,
    }
    return drawn(draw, kind, options, draw(sizes), draw(st.one_of(st.none(), st.integers(0, 9))))


@st.composite
def cell_cases(draw: Any) -> tuple[Any, Any, Tensor, Any, bool]:
    kind = draw(st.sampled_from(CELLS))
    return drawn(draw, kind, {"bias": draw(st.booleans())}, 1, draw(st.one_of(st.none(), st.integers(0, 20))))


def drawn(draw: Any, kind: Kind, options: dict[str, Any], T: int, B: int | None) -> tuple[Any, Any, Tensor, Any, bool]:
    # float32 may be on the other side of ReLU's kink than float64, and dropout draws other numbers in each dtype.
    exact = kind.is_relu or options.get("dropout")
    dtype = f64 if exact else draw(st.sampled_from([f64, f32, f32, bf16, f16]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    torch.set_num_threads(1)  # of two where others run, threads wait for each other; test_threads has them
    ours, theirs = kind.pair(draw(sizes), draw(sizes), dtype=dtype, **options)
    x, hx = kind.example(ours, T, B, hx=draw(st.booleans()), dtype=dtype)
    return ours, theirs.double(), laid(draw, x), laid(draw, hx), draw(st.booleans())


def agrees(ours: Any, theirs: Any, x: Tensor, hx: Any, train: bool) -> None:
    ours.train(train), theirs.train(train)
    if x.dtype in (bf16, f16):  # outputs alone: their rounding says nothing of gradients of hundreds of steps
        with torch.no_grad():
            actual, expected = outputs(ours, x, hx), outputs(theirs, widen(x), widen(hx))
        for name, exact in expected.items():
            assert actual[name].dtype == x.dtype
            scale = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
            close(name, actual[name].double(), exact, 4 * torch.finfo(x.dtype).eps * scale)
        return
    with torch.set_grad_enabled(train):
        expected = results(theirs, widen(x), widen(hx), seed=3)
        # Where gates saturate, 1 - h² is off by what h was rounded by, whatever is left of it.
        assert_same(results(ours, x, hx, seed=3), expected, x.dtype, 5e-5 if x.dtype == f32 else 1e-11, floor=0.1)


@examples(3000)
@given(layer_cases())
def test_any_layer_agrees_with_nn(case: Any) -> None:
    agrees(*case)


@examples(1500)
@given(cell_cases())
def test_any_cell_agrees_with_nn(case: Any) -> None:
    agrees(*case)


@st.composite
def carried(draw: Any) -> tuple[Any, Tensor, int]:
    kind = draw(st.sampled_from(LAYERS))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    module = kind.ours(draw(sizes), draw(sizes), num_layers=draw(st.integers(1, 3)), dtype=f64)
    x = LAYOUTS[draw(layouts)](kind.example(module, draw(st.integers(2, 12)), draw(st.integers(1, 6)))[0].detach())
    return module, x, draw(st.integers(1, len(x) - 1))


@examples(500)
@given(carried())
def test_a_sequence_in_two_pieces_is_the_sequence(case: tuple[Any, Tensor, int]) -> None:
    module, x, cut = case
    y, end = module(x)
    first, state = module(x[:cut])
    second, last = module(x[cut:], state)
    close("y", torch.cat([first, second]), y, 1e-12)
    for a, b in zip(flatten(last), flatten(end), strict=True):
        close("end", a, b, 1e-12)


@examples(500)
@given(carried(), st.randoms(use_true_random=False))
def test_rows_of_a_batch_do_not_see_each_other(case: tuple[Any, Tensor, int], random: Any) -> None:
    module, x, _ = case
    order = random.sample(range(x.shape[1]), x.shape[1])
    close("y", module(x[:, order])[0], module(x)[0][:, order], 1e-12)
