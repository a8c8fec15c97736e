"""The conversions from and to half types, which every instruction set has code of its own for, to the bit.

A product of two half numbers is exact in float32, so a gradient dw = dy x of a single step is each product, rounded
once: x runs through all bit patterns, and torch's own conversions tell what is right.
"""

from __future__ import annotations

import pytest
import torch
from isas import assert_tests_pass, each_isa, not_within_itself

from fusedrnn.ops import BACKWARD, FORWARD

each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

# Wide rows are converted by the vector; the others, and the ends of rows, value by value.
WIDTHS = [1, 7, 8, 15, 16, 17, 33, 65536 + 5]


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a type: zeros, subnormals, infinities and NaN among them."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)


def factors(dtype: torch.dtype) -> torch.Tensor:
    """Factors that shift, that make ties between neighbours, that reach subnormal results, and that overflow."""
    info = torch.finfo(dtype)
    some = [0.0, 0.25, 0.5, 0.75, 1.0, 1 + info.eps, 1.5, 2 - info.eps, 3.0, 255.0, info.tiny, info.tiny / 4, info.max]
    numbers = torch.tensor(some, dtype=torch.float64).to(dtype)
    return torch.cat([numbers, -numbers, torch.tensor([float("inf"), float("nan")], dtype=dtype)])


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[a, b], each rounded once to the type of a."""
    return (a.float()[:, None] * b.float()).to(a.dtype)


def assert_equal(actual: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(actual, right, rtol=0, atol=0, equal_nan=True)


@each_half
@pytest.mark.parametrize("width", WIDTHS)
def test_products_in_backward_are_those_of_torch_for_all_numbers(dtype, width):
    x, dy = patterns(dtype).repeat(2)[:width] if width > 1 << 15 else patterns(dtype)[-width:], factors(dtype)
    H, one = len(dy), torch.ones(1, 1, len(dy), dtype=dtype)
    nothing = x.new_empty(0)
    weights = x.new_zeros(H, width), x.new_zeros(H, H), None, None
    grads = BACKWARD["rnn_relu"](
        dy[None, None], None, None, x[None, None], one[0], None, *weights, None, one, nothing, nothing, False, False,
        False, True,
    )  # fmt: skip
    assert_equal(grads[3], products(dy, x))  # dw_ih
    assert_equal(grads[4], products(dy, one[0, 0]))  # dw_hh


@each_half
def test_products_in_forward_are_those_of_torch_for_all_numbers(dtype):
    x, w = patterns(dtype), factors(dtype)
    H = len(w)
    states = x.new_zeros(len(x), H), None
    y, h_n = FORWARD["rnn_relu"](
        x[None, :, None], *states, w[:, None], x.new_zeros(H, H), None, None, None, False, False
    )
    right = products(x, w).relu()
    assert_equal(y[0], right)
    assert_equal(h_n, right)


@each_half
@pytest.mark.parametrize("H", [1, 7, 16, 17, 256])
def test_states_pass_a_sequence_of_no_steps_unchanged(dtype, H):
    h0 = patterns(dtype)[: (1 << 16) // H * H].view(-1, H)
    h_n = FORWARD["gru"](
        h0.new_empty(0, len(h0), 3), h0, None, h0.new_zeros(3 * H, 3), h0.new_zeros(3 * H, H), None, None, None, False,
        False,
    )[1]  # fmt: skip
    assert_equal(h_n, h0)


@not_within_itself
@each_isa
def test_every_instruction_set_passes_these_tests(isa):
    assert_tests_pass(__file__, isa)
