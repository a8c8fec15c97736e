"""torch.compile on the device, and what torch checks of an operator."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from cases import Kind, assert_same, each_layer, f32
from device_cases import leaves, moved
from op_cases import arguments
from places import Place

from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)


def check_compiled(place: Place, kind: Kind, backend: str, **options: Any) -> None:
    module = kind.ours(3, 6, dtype=f32, **options).to(place.device)
    x, hx = (moved(tree, place.device) for tree in kind.example(module, dtype=f32))
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_same(cases.results(compiled, x, hx), cases.results(module, x, hx), f32, 1e-5)
    with torch.no_grad():
        assert_same(cases.outputs(compiled, x, hx), cases.outputs(module, x, hx), f32, 1e-5)


@pytest.mark.any_algorithm
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
@each_layer
def test_a_compiled_module_is_one_graph_with_the_same_results(
    place: Place, kind: Kind, options: dict[str, Any]
) -> None:
    place.needs_torchs_own()
    check_compiled(place, kind, "aot_eager", **options)


@pytest.mark.any_algorithm
@pytest.mark.hardware
@pytest.mark.filterwarnings("ignore")  # of the compiler, about this device
@pytest.mark.usefixtures("fresh_dynamo")
def test_inductor_compiles_a_module(place: Place) -> None:
    pytest.importorskip("triton")
    check_compiled(place, cases.LAYERS[0], "inductor", num_layers=2)


@pytest.mark.any_algorithm
@each_cell
def test_opcheck_passes_on_the_device(place: Place, cell: str) -> None:
    place.needs_torchs_own()
    args = leaves(arguments(cell, (3, 2, 4, 5)), place.device)
    torch.library.opcheck(SAVING[cell], (*args, None, False, True, False))
    fixed = [None if t is None else t.detach() for t in args]
    torch.library.opcheck(FORWARD[cell], (*fixed, None, False, True))
    y, h_n, c_n, saved, c = SAVING[cell](*fixed, None, False, True, False)
    grads = (torch.ones_like(y), torch.ones_like(h_n), torch.ones_like(c_n) if CELLS[cell].states == 2 else None)
    torch.library.opcheck(BACKWARD[cell], (*grads, *fixed, None, y, saved, c, False, True, True, True))
