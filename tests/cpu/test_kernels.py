"""The CPU kernels, through the operators, against the reference in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from isas import assert_tests_pass, each_isa, not_within_itself
from op_cases import LAYOUTS, SIZES, arguments, cotangents, expected, fused, largest_error

from fusedrnn.ops import CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]}-reverse={v[1]}")

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}

# Rows are split over threads for large batches, hidden units for small ones: these reach both, and neither.
THREADED = [(4, 96, 8, 64), (5, 3, 16, 300), (3, 40, 24, 520), (2, 2, 3, 4)]


@each_cell
@each_layout
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_outputs_and_gradients_agree_with_the_reference(cell, layout, dtype, bias):
    for size in SIZES:
        args = arguments(cell, size, dtype, layout[0], bias)
        grads = cotangents(cell, args, layout)
        errors = largest_error(fused(cell, args, layout, grads), expected(cell, args, layout, grads))
        assert max(errors.values()) < TOLERANCE[dtype], (size, errors)


@each_cell
@each_layout
@pytest.mark.parametrize("size", THREADED, ids=str)
def test_results_are_the_same_to_the_bit_for_any_number_of_threads(cell, layout, size):
    args = arguments(cell, size, torch.float32, layout[0])
    grads = cotangents(cell, args, layout)
    alone = fused(cell, args, layout, grads)
    for threads in (2, 3, 5, 2):
        torch.set_num_threads(threads)
        together = fused(cell, args, layout, grads)
        # Weight gradients are the library's matrix products, which may add in another order.
        for name in ("y", "h_n", "dh0"):
            assert torch.equal(alone[name], together[name]), (name, threads)
        assert max(largest_error(together, expected(cell, args, layout, grads)).values()) < 1e-5


@each_cell
@each_layout
def test_what_is_saved_for_backward_does_not_change_the_outputs(cell, layout):
    for size in SIZES:
        args = arguments(cell, size, torch.float32, layout[0])
        saving, forward = SAVING[cell](*args, None, *layout, False), FORWARD[cell](*args, None, *layout)
        for a, b in zip(saving[: len(forward)], forward, strict=True):
            assert torch.equal(a, b), size


@each_cell
def test_long_sequences_that_are_projected_in_chunks_agree_with_the_reference(cell):
    # 4 MiB of gates and more: several chunks of steps.
    args = arguments(cell, (150, 24, 5, 96), torch.float64)
    for reverse in (False, True):
        grads = cotangents(cell, args, (False, reverse))
        errors = largest_error(
            fused(cell, args, (False, reverse), grads), expected(cell, args, (False, reverse), grads)
        )
        assert max(errors.values()) < 1e-12, errors
        y = FORWARD[cell](*args, None, False, reverse)[0]
        assert torch.equal(y, SAVING[cell](*args, None, False, reverse, False)[0])


@each_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_no_steps_hand_the_states_through_and_give_zero_weight_gradients(cell, batch_first):
    args = arguments(cell, (0, 3, 5, 18), batch_first=batch_first)
    grads = cotangents(cell, args, (batch_first, False))
    out = fused(cell, args, (batch_first, False), grads)
    assert torch.equal(out["h_n"], args.h0)
    assert torch.equal(out["dh0"], grads[1])
    assert not any(out[name].any() for name in ("dw_ih", "dw_hh", "db_ih", "db_hh"))


@each_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_gives_empty_outputs_and_zero_weight_gradients(cell, batch_first):
    args = arguments(cell, (4, 0, 5, 18), batch_first=batch_first)
    out = fused(cell, args, (batch_first, False), cotangents(cell, args, (batch_first, False)))
    assert out["y"].shape == (*args.x.shape[:2], 18)
    assert out["dx"].shape == args.x.shape
    assert not any(out[name].any() for name in ("dw_ih", "dw_hh", "db_ih", "db_hh"))


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    rounded = exact.to(actual.dtype).abs()
    spacing = torch.nextafter(rounded, torch.full_like(rounded, float("inf"))) - rounded
    return (actual.double() - exact).abs() / spacing.double()


def test_activations_are_within_3_ulp_of_float64_down_to_subnormal_results():
    x = torch.cat(
        [
            torch.linspace(-110, 110, 1 << 18),
            torch.linspace(-10, 10, 1 << 18),
            torch.linspace(-0.01, 0.01, 1 << 16),
            torch.logspace(-37, 2, 1 << 16),
            -torch.logspace(-37, 2, 1 << 16),
        ]
    )
    sigmoid, tanh = torch.ops.fusedrnn.activations(x)
    assert ulps(sigmoid, x.double().sigmoid()).max() <= 3
    assert ulps(tanh, x.double().tanh()).max() <= 3


def test_activations_in_float64_are_accurate():
    x = torch.cat([torch.linspace(-700, 700, 1 << 16), torch.linspace(-20, 20, 1 << 16), torch.logspace(-300, 1, 4096)])
    x = x.double()
    sigmoid, tanh = torch.ops.fusedrnn.activations(x)
    torch.testing.assert_close(sigmoid, x.sigmoid(), rtol=1e-15, atol=0)
    torch.testing.assert_close(tanh, x.tanh(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_are_exact_at_infinity_and_keep_nan(dtype):
    inf, nan = float("inf"), float("nan")
    sigmoid, tanh = torch.ops.fusedrnn.activations(torch.tensor([inf, -inf, 0.0, nan, 1e30, -1e30], dtype=dtype))
    torch.testing.assert_close(
        sigmoid, torch.tensor([1, 0, 0.5, nan, 1, 0], dtype=dtype), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(tanh, torch.tensor([1, -1, 0, nan, 1, -1], dtype=dtype), rtol=0, atol=0, equal_nan=True)


def test_an_unknown_instruction_set_is_refused_with_the_known_ones():
    run = subprocess.run(
        [sys.executable, "-c", "import fusedrnn, torch; torch.ops.fusedrnn.cpu_isa()"],
        env={**os.environ, "FUSEDRNN_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "FUSEDRNN_ISA=mmx: expected one of" in run.stderr and "baseline" in run.stderr


@not_within_itself
@each_isa
def test_every_instruction_set_passes_these_tests(isa):
    assert_tests_pass(__file__, isa)
