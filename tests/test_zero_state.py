"""What the operators take besides a whole sequence and its states: no states, which are zeros, and a single step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import LAYOUTS, SIZES, Arguments, arguments, cotangents
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fusedrnn import network
from fusedrnn.autograd import FUNCTIONS
from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]}-reverse={v[1]}")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
each_recompute = pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
NAMES = ("y", "h_n", "c_n", "dx", "dh0", "dc0", "dw_ih", "dw_hh", "db_ih", "db_hh")

# The last ones: several pieces of backward, and few enough rows that weights are read in place.
MORE_SIZES = [*SIZES, (700, 3, 2, 5), (8, 1, 4, 40), (1, 2, 40, 33), (5, 3, 16, 300)]


def without_states(args: Arguments) -> Arguments:
    return args._replace(h0=None, c0=None)


def with_zeros(cell: str, args: Arguments, *size: int) -> Arguments:
    zeros = args.x.new_zeros(*size, args.w_hh.shape[1])
    return args._replace(h0=zeros, c0=zeros if CELLS[cell].states == 2 else None)


def run(
    cell: str,
    args: Arguments,
    grads: list[Tensor],
    layout: Any = (False, False),
    tokens: Tensor | None = None,
    again: bool = False,
) -> dict[str, Tensor]:
    """Outputs and gradients of the operators, by name."""
    y, h_n, c_n, saved, c = SAVING[cell](*args, tokens, *layout, again)
    for a, b in zip(FORWARD[cell](*args, tokens, *layout), (y, h_n, c_n), strict=False):
        torch.testing.assert_close(a, b)
    grads = [*grads, *[None] * (3 - len(grads))]
    gradients = BACKWARD[cell](*grads, *args, tokens, y, saved, c, *layout, True, True)
    return dict(zip(NAMES, (y, h_n, c_n, *gradients), strict=True))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], *but: str) -> None:
    for name in NAMES:
        if name not in but:
            assert torch.equal(actual[name], expected[name]), name


@each_cell
@each_layout
@each_dtype
@each_recompute
def test_no_states_are_zeros_to_the_bit_in_outputs_and_gradients(cell, layout, dtype, recompute):
    for size in MORE_SIZES:
        args = arguments(cell, size, dtype, layout[0])
        y, *states = cotangents(cell, args, layout)
        grads = [y, *(s.unsqueeze(0) for s in states)]
        none = run(cell, without_states(args), grads, layout, again=recompute)
        zeros = run(cell, with_zeros(cell, args, 1, size[1]), grads, layout, again=recompute)
        assert_equal(none, zeros, "dh0", "dc0")
        assert none["dh0"].numel() == none["dc0"].numel() == 0


@each_cell
@each_layout
@each_recompute
@pytest.mark.parametrize("V", [4, 50])
def test_no_states_are_zeros_with_tokens(cell, layout, recompute, V):
    T, B, I, H = 6, 3, 4, 17
    args = arguments(cell, (T, B, I, H))._replace(x=torch.randn(V, I, dtype=torch.float64))
    tokens = torch.randint(V, (B, T) if layout[0] else (T, B))
    grads = [torch.randn(*tokens.shape, H, dtype=torch.float64)]
    none = run(cell, without_states(args), grads, layout, tokens, recompute)
    assert_equal(none, run(cell, with_zeros(cell, args, 1, B), grads, layout, tokens, recompute), "dh0", "dc0")


@each_cell
@each_dtype
@each_recompute
def test_one_step_is_a_sequence_of_length_one(cell, dtype, recompute):
    for _, B, I, H in MORE_SIZES:
        args = arguments(cell, (1, B, I, H), dtype)
        grads = cotangents(cell, args, (False, False))
        whole = run(cell, args, grads, again=recompute)
        step = args._replace(x=args.x[0])
        for layout in LAYOUTS:
            one = run(cell, step, [grads[0][0], *grads[1:]], layout, again=recompute)
            one["y"], one["dx"] = one["y"].unsqueeze(0), one["dx"].unsqueeze(0)
            assert_equal(one, whole)
        none = run(cell, without_states(step), [grads[0][0], *grads[1:]], again=recompute)
        assert_equal(
            none, run(cell, with_zeros(cell, step, B), [grads[0][0], *grads[1:]], again=recompute), "dh0", "dc0"
        )


@each_cell
def test_one_step_may_lie_in_memory_in_any_way(cell):
    args = arguments(cell, (1, 5, 4, 7))
    x = args.x[0]
    right = FORWARD[cell](*args._replace(x=x), None, False, False)
    for laid in (x.t().contiguous().t(), torch.cat([x, x], 1)[:, :4], torch.stack([x, x], 1)[:, 0]):
        for a, b in zip(FORWARD[cell](*args._replace(x=laid), None, False, False), right, strict=True):
            assert torch.equal(a, b)


def forms(cell: str, requires_grad: bool = False) -> list[Arguments]:
    """No states for a sequence, and a single step with states and without."""
    args = arguments(cell, (2, 2, 2, 3), requires_grad=requires_grad)
    step = args._replace(x=args.x[0].detach().requires_grad_(requires_grad))
    return [without_states(args), step, without_states(step)]


@each_cell
@each_recompute
def test_opcheck_passes(cell, recompute):
    for requires_grad in (False, True):
        for args in forms(cell, requires_grad):
            torch.library.opcheck(SAVING[cell], (*args, None, False, False, recompute))
    for args in forms(cell):
        torch.library.opcheck(FORWARD[cell], (*args, None, False, False))
        y, _, _, saved, c = SAVING[cell](*args, None, False, False, recompute)
        backward = (torch.randn_like(y), None, None, *args, None, y, saved, c, False, False, True, True)
        torch.library.opcheck(BACKWARD[cell], backward)


@each_cell
@pytest.mark.parametrize("path", ["function", "operator", "forward mode"])
def test_derivatives_agree_with_finite_differences(cell, path):
    for args in forms(cell, requires_grad=True):

        def outputs(*given, args=args):
            rest = iter(given)
            full = Arguments(*(None if t is None else next(rest) for t in args))
            flags = (None, False, False, False)
            if path == "forward mode":
                states = None if full.h0 is None else [s for s in (full.h0, full.c0) if s is not None]
                return network.layer(cell, full.x, states, full[3:])
            out = SAVING[cell](*full, *flags) if path == "operator" else FUNCTIONS[cell].apply(cell, *full, *flags)
            return out[: 1 + CELLS[cell].states]

        if path == "forward mode":
            assert gradcheck(outputs, args.given(), check_forward_ad=True, check_backward_ad=False)
        else:
            assert gradcheck(outputs, args.given())
            assert gradgradcheck(outputs, args.given(), fast_mode=True)


@each_cell
def test_per_sample_gradients_agree_with_one_call_per_sample(cell):
    for args in forms(cell):
        states = None if args.h0 is None else [s for s in (args.h0, args.c0) if s is not None]
        samples = torch.randn(3, *args.x.shape, dtype=torch.float64)

        def loss(weights, x, states=states):
            return network.layer(cell, x, states, weights)[0].sin().sum()

        together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(args[3:], samples)
        for i, x in enumerate(samples):
            alone = torch.func.grad(loss)(args[3:], x)
            torch.testing.assert_close(tuple(g[i] for g in together), alone)


def test_states_that_do_not_fit_a_single_step_are_refused():
    for cell in CELLS:
        args = arguments(cell, (1, 2, 4, 5))
        step = args._replace(x=args.x[0], h0=args.h0.unsqueeze(0))
        with pytest.raises(RuntimeError, match=r"expected h0 of shape \[2, 5\], got \[1, 2, 5\]"):
            FORWARD[cell](*step, None, False, False)


def test_an_lstm_takes_both_states_or_none():
    args = arguments("lstm", (3, 2, 4, 5))
    for wrong in (args._replace(h0=None), args._replace(c0=None)):
        with pytest.raises(RuntimeError, match="takes both states or none"):
            FORWARD["lstm"](*wrong, None, False, False)
