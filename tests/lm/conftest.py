from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fusedrnn.lm import RECIPES, Corpus, Recipe, human_numbers, make_corpus, train


@pytest.fixture(scope="session")
def numbers() -> list[str]:
    return human_numbers()


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """hn-gru with a model that trains in a second."""
    return dataclasses.replace(RECIPES["hn-gru"], embedding_size=24, hidden_size=24, epochs=2)


@pytest.fixture(scope="session")
def small_corpus(numbers: list[str]) -> Corpus:
    """The first numbers only: a few batches of 4 rows of 6 tokens."""
    return make_corpus(numbers[:300], sequence_length=6, batch_size=4)


@pytest.fixture(scope="session")
def run_folder(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read it, do not write into it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    torch.set_num_threads(1)  # made before the fixture that does so for each test
    train(small_recipe, path, seed=3)
    return path
