"""One layer in one direction, on the device: outputs and every gradient against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from device_cases import DTYPES, Case, assert_close, draw, exact, fused, leaves, on_device, poison
from places import Place

from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# T, B, I, H: around multiples of warps, tiles and 16 bytes, and far from them.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 7, 15),
    (3, 2, 33, 16),
    (7, 1, 3, 17),
    (5, 7, 2, 33),
    (4, 15, 16, 3),
    (6, 16, 1, 7),
    (3, 17, 15, 40),
    (2, 20, 5, 32),
    (7, 5, 8, 24),
    (1, 19, 3, 2),
]
LAYOUTS = list(itertools.product([False, True], [False, True]))  # batch_first, reverse


def check(case: Case, place: Place, tf32: bool = False) -> None:
    assert_close(on_device(case, place.device), exact(case), case, tf32)


@each_cell
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]:d}-reverse={v[1]:d}")
def test_agrees_with_the_reference_at_every_size(
    place: Place, cell: str, dtype: torch.dtype, layout: tuple[bool, bool]
) -> None:
    sizes = place.some(SIZES, turn=LAYOUTS.index(layout) + DTYPES.index(dtype))
    place.check_each(sizes, lambda size: check(Case(cell, size, dtype, *layout), place))


@each_cell
@each_dtype
def test_one_step_agrees_with_the_reference(place: Place, cell: str, dtype: torch.dtype) -> None:
    """x is [B, I], as in the cells."""
    sizes = [(1, B, I, H) for B, I, H in [(1, 3, 5), (3, 8, 16), (17, 5, 33), (20, 1, 40)]]
    place.check_each(place.some(sizes), lambda size: check(Case(cell, size, dtype, one_step=True), place))


@each_cell
@each_dtype
@pytest.mark.parametrize("states", ["none", "[1, B, H]"])
def test_states_from_zeros_and_with_a_layer_in_front(place: Place, cell: str, dtype: torch.dtype, states: str) -> None:
    cases = [Case(cell, (3, 5, 4, 19), dtype, *layout, states=states) for layout in LAYOUTS]
    place.check_each(place.some(cases), lambda case: check(case, place))


@each_cell
@each_dtype
def test_without_biases(place: Place, cell: str, dtype: torch.dtype) -> None:
    cases = [Case(cell, (4, 5, 6, 18), dtype, *layout, bias=False) for layout in LAYOUTS]
    place.check_each(place.some(cases), lambda case: check(case, place))


@each_cell
@each_dtype
def test_gradients_of_some_outputs_only(place: Place, cell: str, dtype: torch.dtype) -> None:
    """What does not come in is no tensor at all, and counts as zeros."""
    used = [("y",), ("h_n",), ("y", "h_n"), *([("c_n",), ("h_n", "c_n"), ("y", "c_n")] if cell == "lstm" else [])]
    cases = [Case(cell, (3, 4, 5, 17), dtype, used=names) for names in used]
    place.check_each(place.some(cases), lambda case: check(case, place))


@each_cell
@each_dtype
def test_memory_that_holds_nan_from_before_changes_nothing(place: Place, cell: str, dtype: torch.dtype) -> None:
    def poisoned(case: Case) -> None:
        poison(place.device)
        check(case, place)

    cases = [Case(cell, (5, 7, 3, 21), dtype), Case(cell, (5, 7, 3, 21), dtype, True, True, states="none")]
    place.check_each(place.some(cases), poisoned)


@each_cell
@each_dtype
def test_one_nan_stays_in_its_row(place: Place, cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, (4, 5, 3, 18), dtype)
    args = leaves(draw(case).args, place.device)
    with torch.no_grad():
        clean = fused(case, args)[0]
        args.x[1, 2, 0] = float("nan")
        y = fused(case, args)[0]
    assert y[1:, 2].isnan().all()
    others = [row for row in range(5) if row != 2]
    assert torch.equal(y[:, others], clean[:, others])
    assert torch.equal(y[:1], clean[:1])


@each_cell
@pytest.mark.parametrize("algorithm_case", [(torch.float32, 16), (torch.float16, 32)], ids=["float32", "float16"])
@pytest.mark.must_run
def test_every_algorithm_runs_an_ordinary_shape(place: Place, cell: str, algorithm_case: tuple) -> None:
    """So that no algorithm is skipped everywhere without being noticed."""
    dtype, H = algorithm_case
    check(Case(cell, (5, 8, 8, H), dtype), place)


@each_cell
@pytest.mark.hardware
def test_tf32_where_torch_allows_it_is_as_exact_as_its_eleven_bits(place: Place, cell: str) -> None:
    torch.set_float32_matmul_precision("high")
    place.check_each(
        [(4, 16, 32, 32), (5, 7, 20, 40)], lambda size: check(Case(cell, size, torch.float32), place, True)
    )
