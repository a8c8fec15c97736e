"""benchmarks/soak.py trains, and tells memory that grows from memory that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

soak = pytest.importorskip("soak", reason="no benchmarks/ beside tests/: not a source tree")


def steps(n: int) -> Callable[[], float]:
    """A clock by which 0.03 minutes are so many steps."""
    return (1.8 * i / n for i in itertools.count()).__next__


def test_a_short_soak_trains_and_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "meter", lambda device: lambda: 100 * soak.MIB)
    assert soak.soak(0.03, "cpu", seed=1, clock=steps(30))
    assert "the memory grew by +0.0 MiB" in capsys.readouterr().out


def test_growing_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()
    monkeypatch.setattr(soak, "meter", lambda device: lambda: 20 * soak.MIB * next(counter))
    assert not soak.soak(0.03, "cpu", seed=1, clock=steps(30))


def test_a_loss_that_is_not_finite_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "train_layer", lambda *_, **__: soak.torch.tensor(float("nan")))
    with pytest.raises(SystemExit, match="the loss of step 1 is nan"):
        soak.soak(0.03, "cpu", seed=1, clock=steps(30))
