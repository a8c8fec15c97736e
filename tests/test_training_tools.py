"""What torch puts around a module for training works as it does around nn.*."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed_training as distributed
import pytest
import torch
from cases import Kind, close, each_layer, each_module, everything, f64, flatten
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

TOOLS: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    # Converged at once: it iterates at each look at the weight, and nn.LSTM looks more than once a call.
    "spectral_norm": lambda module, name: parametrizations.spectral_norm(module, name, n_power_iterations=300),
    "orthogonal": parametrizations.orthogonal,
    "weight_norm by hooks": nn.utils.weight_norm,
    "spectral_norm by hooks": nn.utils.spectral_norm,
    "pruned by size": lambda module, name: prune.l1_unstructured(module, name, 0.3),
    "pruned by rows": lambda module, name: prune.random_structured(module, name, 0.3, dim=0),
}


def trained(module: nn.Module, x: Tensor, hx: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    torch.manual_seed(5)
    for _ in range(3):
        optimizer.zero_grad()
        out = flatten(module(x, hx))
        sum((t.sin().sum() for t in out), x.new_zeros(())).backward()
        optimizer.step()
    return {**{str(i): t.detach() for i, t in enumerate(out)}, **module.state_dict()}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm")
@pytest.mark.parametrize("tool", TOOLS)
@each_module
def test_a_weight_that_a_tool_computes_trains_as_in_nn(kind: Kind, tool: str) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64)
    x, hx = kind.example(ours)
    for module in (ours, theirs):
        torch.manual_seed(4)
        TOOLS[tool](module, kind.parameter("weight_hh"))
    theirs.load_state_dict(ours.state_dict())
    actual, expected = trained(ours, x, hx), trained(theirs, x, hx)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        close(name, actual[name], tensor, 1e-11)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@each_module
def test_deterministic_algorithms_are_all_there_are(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64, **everything(kind))
    x, hx = kind.example(module)
    once, again = (trained(copy.deepcopy(module), x, hx) for _ in range(2))
    for name, tensor in once.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.usefixtures("deterministic")
@each_layer
def test_tokens_are_deterministic_too(kind: Kind) -> None:
    module = kind.ours(3, 4)
    table, tokens = torch.randn(5, 3, requires_grad=True), torch.randint(5, (20, 8))
    once, again = (torch.autograd.grad(module(tokens, embedding=table)[0].sum(), table)[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fully_shard"])
def test_two_processes_train_what_one_does(way: str, tmp_path: Path) -> None:
    """Each on its half of every batch, with nn.LSTM on whole batches in this process for comparison."""
    out = tmp_path / "parameters.pt"
    command = [sys.executable, distributed.__file__, way]
    programs = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "rendezvous"), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(distributed.WORLD)
    ]
    try:
        for program in programs:
            text, _ = program.communicate(timeout=120)
            assert program.returncode == 0, text
    finally:
        for program in programs:
            program.kill()
    expected = distributed.model()
    distributed.train(expected, distributed.batches())
    actual = torch.load(out, weights_only=True)
    assert actual.keys() == dict(expected.named_parameters()).keys()
    for name, parameter in expected.named_parameters():
        close(name, actual[name], parameter.detach(), 1e-12)
