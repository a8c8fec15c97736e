"""bfloat16 and float16, which are computed in float32: against the reference in float64 on the same half numbers."""

from __future__ import annotations

import math

import pytest
import torch
from cases import each_layer, results, sample, widen
from op_cases import LAYOUTS, NAMES, SIZES, arguments, cotangents, expected, fused, largest_error

from fusedrnn import functional
from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]}-reverse={v[1]}")


@each_cell
@each_half
@each_layout
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_outputs_and_gradients_are_within_a_few_eps_of_the_reference(cell, dtype, layout, bias):
    eps = torch.finfo(dtype).eps
    for size in SIZES:
        args = arguments(cell, size, dtype, layout[0], bias)
        grads = cotangents(cell, args, layout)
        actual = fused(cell, args, layout, grads)
        assert {t.dtype for t in actual.values()} == {dtype}
        for name, error in largest_error(actual, expected(cell, args, layout, grads)).items():
            if name in ("y", "h_n", "c_n"):  # rounded once
                limit = 0.51
            elif name in ("dx", "dh0", "dc0"):
                limit = 2
            else:  # sums over all steps and rows, whose errors walk at random while they may cancel
                limit = max(2, math.sqrt(size[0] * size[1]))
            assert error < limit * eps, (size, name, error / eps)


@each_cell
@each_half
@each_layout
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_backward_is_that_of_float32_on_the_numbers_that_were_kept(cell, dtype, layout, recompute):
    """Nothing is rounded in between: not the gradients that pass from step to step, nor the sums over the steps."""
    for size in [*SIZES, (700, 3, 2, 17)]:
        args = arguments(cell, size, dtype, layout[0])
        grads = cotangents(cell, args, layout)
        grads += [None] * (3 - len(grads))
        y, _, _, saved, c = SAVING[cell](*args, None, *layout, recompute)
        given = *grads, *args, None, y, saved, c
        half = BACKWARD[cell](*given, *layout, True, True)
        full = BACKWARD[cell](*(None if t is None else t.float() for t in given), *layout, True, True)
        for name, a, b in zip(NAMES, half, full, strict=True):
            torch.testing.assert_close(
                a, b.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )


@each_cell
@each_half
def test_the_state_is_not_rounded_between_the_steps(cell, dtype):
    """After many steps the result is still that of float32, rounded once."""
    args = arguments(cell, (200, 3, 5, 18), dtype)
    wide = type(args)(*(None if t is None else t.float() for t in args))
    flags = None, False, False
    for half, full in zip(FORWARD[cell](*args, *flags), FORWARD[cell](*wide, *flags), strict=True):
        torch.testing.assert_close(half, full.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert (half == full.to(dtype)).float().mean() > 0.99


def rms(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


# One layer: in a second one ReLU's kink would multiply the error of the first, by chance in nn.* or in ours.
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=["plain", "bidirectional"])
@each_half
@each_layer
def test_the_error_is_no_more_than_twice_that_of_nn(kind, dtype, options):
    ours, wide, x, hx = sample(kind, (17, 9, 12, 33), dtype, **options)
    theirs = kind.theirs(12, 33, dtype=dtype, **options)
    theirs.load_state_dict(ours.state_dict())
    right = results(wide, widen(x), widen(hx))
    mine, nns = results(ours, x, hx), results(theirs, x, hx)
    for name, exact in right.items():
        error = rms(mine[name].double() - exact)
        # Where nn.* rounds once too, chance decides.
        assert error <= 2 * rms(nns[name].double() - exact) + 0.1 * torch.finfo(dtype).eps * rms(exact), name


@each_half
def test_what_overflows_the_type_is_infinite_and_what_is_too_small_is_zero(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([info.max, info.tiny, -info.max], dtype=dtype).view(1, 3, 1)
    eye, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)

    def run(factor):
        return functional.rnn(x, None, [factor * eye, zero], nonlinearity="relu")[0].flatten().tolist()

    assert run(2) == [float("inf"), 2 * info.tiny, 0]
    assert run(info.smallest_normal / 4)[1:] == [0, 0]
    # Half of the smallest subnormal number is a tie, and goes to the even zero; more than that goes up.
    assert run(info.eps / 2)[1] == 0
    assert run(0.75 * info.eps)[1] == info.eps * info.tiny


@each_half
@each_layer
def test_one_nan_stays_in_its_row(kind, dtype):
    module = kind.ours(4, 19, dtype=dtype)
    x = torch.randn(5, 3, 4, dtype=dtype)
    clean = module(x)[0]
    x[2, 1, 0] = float("nan")
    y = module(x)[0]
    assert y[2:, 1].isnan().all()
    assert torch.equal(y[:, [0, 2]], clean[:, [0, 2]])
    assert torch.equal(y[:2], clean[:2])
