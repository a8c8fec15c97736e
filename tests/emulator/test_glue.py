"""csrc/ops_cuda.cpp and layer.cpp where a device limits what can run, and what they say of what fails.

That outputs and gradients are right is for tests/cuda, which runs on the emulated operators too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from emulator import glue, toolchain

H100 = {"sm_count": 4, "shared_bytes": 227 << 10, "capability": 90, "cooperative": True, "tf32": False}


class Glue:
    """Emulated operators on a device that a test describes."""

    def __init__(self, operators: Any) -> None:
        self.operators = operators
        self.device()

    def device(self, **other: Any) -> None:
        self.operators.set_device(*{**H100, **other}.values())

    def gru(self, T: int = 3, B: int = 2, H: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """y of a layer of H inputs that the sizes determine."""
        random = torch.Generator().manual_seed(H)
        draw = lambda *size: torch.randn(*size, generator=random, dtype=torch.float64).to(dtype)  # noqa: E731
        x, w_ih, w_hh = draw(T, B, H), draw(3 * H, H) / H**0.5, draw(3 * H, H) / H**0.5
        return self.operators.gru(x, None, None, w_ih, w_hh, None, None, None, False, False)[0]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Glue]:
    if not glue.CSRC.exists():
        pytest.skip("no csrc/ beside tests/: not a source tree")
    try:
        operators = glue.load()
    except toolchain.Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.delenv("FUSEDRNN_ALGORITHM", raising=False)
    yield Glue(operators)
    assert operators.reports() == ""  # of kernels, and of guards that were not given back


@pytest.mark.parametrize(
    "algorithm, shape, device, complaint",
    [
        ("gird", {}, {}, "there is no algorithm gird: it is one of step, block, grid"),
        ("block", {"dtype": torch.float64}, {}, "the algorithm block does not run float64"),
        ("block", {"H": 400}, {}, "the algorithm block does not run hidden size 400 on this device"),
        ("block", {"H": 32}, {"shared_bytes": 4096}, "the algorithm block does not run hidden size 32 on this device"),
        ("grid", {}, {"cooperative": False}, "the algorithm grid does not run on this device: it does not launch coop"),
        ("grid", {}, {"shared_bytes": 64}, "the algorithm grid does not run batch size 2 with hidden size 8"),
    ],
)
def test_an_algorithm_that_is_asked_for_and_cannot_run_is_an_error(
    emulated: Glue, monkeypatch: pytest.MonkeyPatch, algorithm: str, shape: dict, device: dict, complaint: str
) -> None:
    monkeypatch.setenv("FUSEDRNN_ALGORITHM", algorithm)
    emulated.device(**device)
    with pytest.raises(RuntimeError, match=f"fusedrnn: {complaint}"):
        emulated.gru(**shape)


@pytest.mark.parametrize("device", [{"cooperative": False}, {"shared_bytes": 64}, {"capability": 75}])
def test_without_being_asked_what_the_device_cannot_do_is_not_tried(emulated: Glue, device: dict) -> None:
    expected = emulated.gru(T=9, B=4, H=33)
    emulated.device(**device)
    torch.testing.assert_close(emulated.gru(T=9, B=4, H=33), expected, rtol=0, atol=2e-6)


def test_an_empty_name_asks_for_none(emulated: Glue, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = emulated.gru()
    monkeypatch.setenv("FUSEDRNN_ALGORITHM", "")
    assert torch.equal(emulated.gru(), expected)


def test_tf32_is_used_where_torch_allows_it_and_the_device_has_it(
    emulated: Glue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_ALGORITHM", "grid")
    exact = emulated.gru(H=40)
    emulated.device(tf32=True, capability=75)
    assert torch.equal(emulated.gru(H=40), exact)
    emulated.device(tf32=True)
    rounded = emulated.gru(H=40)
    assert 1e-6 < (rounded - exact).abs().max() < 40**0.5 * 2**-10


def test_a_launch_that_fails_names_the_kernel_and_the_shape(emulated: Glue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that promises more shared memory than it has."""
    monkeypatch.setenv("FUSEDRNN_ALGORITHM", "block")
    emulated.device(shared_bytes=1 << 30)
    message = r"fusedrnn: block_forward failed: .* \(gru, 4 bytes a value, T 3, B 2, I 250, H 250\)"
    with pytest.raises(RuntimeError, match=message):
        emulated.gru(H=250)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_length_that_is_none_of_the_sequence_is_an_error_of_the_device(emulated: Glue, length: int) -> None:
    x, w = torch.zeros(3, 2, 4), torch.zeros(4, 4)
    lengths = torch.tensor([3, length])
    with pytest.raises(RuntimeError, match="make_flags failed"):
        emulated.operators.rnn_tanh(x, None, None, w, w, None, None, None, False, False, None, lengths)
    assert "the kernel stops itself" in emulated.operators.reports()
