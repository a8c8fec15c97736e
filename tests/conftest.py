from __future__ import annotations

from collections.abc import Iterator

import places
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := places.why_no_gpu():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seed_and_threads() -> Iterator[None]:
    """Every test starts from the same seed on one thread; a test about threads sets their number itself."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled graph of another test is reused, and none is left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
