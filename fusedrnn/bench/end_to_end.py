"""Whole programs: training hn-gru, and writing tokens one by one, with the layers of fusedrnn and of nn.*."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ..lm.data import Corpus, Vocabulary
from ..lm.generation import generate
from ..lm.model import Backend, LanguageModel
from ..lm.recipe import Recipe
from ..lm.recipes import RECIPES
from ..lm.trainer import Trainer
from .measure import Function, compare, threads
from .subjects import Plan, Row, Shape

_LENGTH = 50  # tokens of a run of generation
_HIDDEN = 256
_EPOCHS = 10_000  # more than are run: the schedule of the learning rate ends after them


def _train(plan: Plan, recipe: Recipe, corpus: Corpus) -> Iterator[Row]:
    recipe = dataclasses.replace(recipe, epochs=_EPOCHS)

    def trainer(backend: Backend) -> Trainer:
        torch.manual_seed(0)
        return Trainer(recipe.make_model(len(corpus.vocabulary), backend), corpus, recipe)

    shape = Shape(recipe.batch_size, recipe.sequence_length, recipe.embedding_size, recipe.hidden_size)
    tokens = sum(inputs.numel() for inputs, _ in corpus.train)
    nn, fused, task = trainer("nn"), trainer("fused"), f"train {recipe.name}"
    for number in plan.threads:
        with threads(number):
            timing = compare(nn.train_epoch, fused.train_epoch, plan.seconds, plan.least)
        yield Row(cell=recipe.cell, shape=shape, threads=number, task=task, timing=timing, tokens=tokens)


def _generation(cell: str, backend: Backend, vocabulary: Vocabulary) -> Function:
    torch.manual_seed(0)
    model = LanguageModel(len(vocabulary), _HIDDEN, _HIDDEN, 1, cell, backend=backend)  # type: ignore[arg-type]
    model.eval()  # as checkpoints are loaded
    return lambda: list(generate(model, vocabulary, [vocabulary.tokens[0]], _LENGTH, seed=0))


def _generate(plan: Plan, vocabulary: Vocabulary) -> Iterator[Row]:
    shape = Shape(1, 1, _HIDDEN, _HIDDEN)
    for cell in plan.cells:
        nn, fused = (_generation(cell, "nn", vocabulary), _generation(cell, "fused", vocabulary))
        for number in plan.threads:
            with threads(number):
                timing = compare(nn, fused, plan.seconds, plan.least)
            yield Row(cell=cell, shape=shape, threads=number, task="generate", timing=timing, tokens=_LENGTH)


def run(plan: Plan) -> Iterator[Row]:
    """Rows of epochs of hn-gru, where the GRU is among the cells, and of generation, for each number of threads."""
    recipe = RECIPES["hn-gru"]
    corpus = recipe.make_corpus()
    if recipe.cell in plan.cells:
        yield from _train(plan, recipe, corpus)
    yield from _generate(plan, corpus.vocabulary)
