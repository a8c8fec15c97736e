"""CUDA graphs: what is captured once gives, with other numbers in its inputs, what a call gives.

On the CPU a stand-in calls the function again, which proves the tests but nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from device_cases import DTYPES, Case, assert_close, draw, exact, fused, leaves, results
from places import Place
from torch import Tensor

import fusedrnn
from fusedrnn.ops import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

Named = dict[str, Tensor]


def capture(device: str, function: Callable[[], Named]) -> tuple[Named, Callable[[], None]]:
    """Results of the function, and what computes them again in the same memory."""
    if not device.startswith("cuda"):
        kept = {name: t.clone() for name, t in function().items()}

        def again() -> None:
            for name, t in function().items():
                kept[name].copy_(t)

        return kept, again
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()
    return kept, graph.replay


def refill(static: Sequence[Tensor | None], fresh: Sequence[Tensor | None]) -> None:
    with torch.no_grad():
        for old, new in zip(static, fresh, strict=True):
            if old is not None and new is not None:
                old.copy_(new)


def check_replays(case: Case, place: Place, backward: bool) -> None:
    drawn, grads = draw(case)
    args = leaves(drawn, place.device)
    incoming = {name: grad.to(place.device) for name, grad in grads.items()}

    def run() -> Named:
        if backward:
            return results(fused, case, args, incoming)
        with torch.no_grad():
            return dict(zip(case.outputs, fused(case, args), strict=True))

    kept, replay = capture(place.device, run)
    for seed in (1, 2, 0):
        other = case._replace(seed=seed)
        fresh = draw(other)
        refill(args, fresh.args)
        refill([*incoming.values()], [*fresh.grads.values()])
        replay()
        expected = {name: t for name, t in exact(other).items() if name in kept}
        assert_close(dict(kept), expected, other)


@each_cell
@each_dtype
@pytest.mark.parametrize("backward", [False, True], ids=["inference", "training"])
def test_replays_give_the_results_of_their_inputs(place: Place, cell: str, dtype: torch.dtype, backward: bool) -> None:
    cases = [
        Case(cell, (5, 6, 4, 17), dtype),
        Case(cell, (3, 2, 8, 32), dtype, True, True, states="none"),
        Case(cell, (5, 6, 4, 17), dtype, masks=("resets", "packed", "states")),
        Case(cell, (5, 6, 4, 17), dtype, reverse=True, masks=("resets", "lengths")),
    ]
    place.check_each(place.some(cases), lambda case: check_replays(case, place, backward))


@each_cell
@pytest.mark.hardware
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_replays_at_the_size_of_real_layers(place: Place, cell: str, dtype: torch.dtype) -> None:
    place.check_each([Case(cell, (20, 16, 64, 256), dtype)], lambda case: check_replays(case, place, True))


def test_a_captured_step_of_training_trains_as_eager_steps_do(place: Place) -> None:
    """Module, loss, backward and update in one graph."""
    torch.manual_seed(3)
    batches = [torch.randn(4, 3, 5) for _ in range(3)]
    initial = fusedrnn.LSTM(5, 12).state_dict()

    def train(captured: bool) -> list[Tensor]:
        module = fusedrnn.LSTM(5, 12)
        module.load_state_dict(initial)
        module.to(place.device)
        x = torch.zeros(4, 3, 5, device=place.device)
        parameters = list(module.parameters())

        def update() -> Named:
            loss = module(x)[0].square().sum()
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p.sub_(g, alpha=0.05)
            return {"loss": loss.detach()}

        step: Callable[[], object] = update
        if captured:
            _, step = capture(place.device, update)
            module.load_state_dict(initial)  # capturing ran it
        for batch in batches:
            x.copy_(batch)
            step()
        return [p.detach().cpu() for p in parameters]

    for eager, replayed in zip(train(False), train(True), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
