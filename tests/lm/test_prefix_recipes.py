"""The recipes of prefix sums: curricula, teacher forcing, and what the trainer makes of them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fusedrnn.lm import RECIPES, RecipeError, Trainer, override, train
from fusedrnn.lm.commands import commands

PREFIX = [name for name in RECIPES if name.startswith("prefix-")]
SMALL = ["batches=3", "batch_size=4", "valid_length=9"]


def trainer(name: str, *settings: str) -> Trainer:
    recipe = override(RECIPES[name], settings)
    torch.manual_seed(0)
    corpus = recipe.make_corpus()
    return Trainer(recipe.make_model(len(corpus.vocabulary)).double(), corpus, recipe)


@pytest.mark.parametrize("name", ["prefix-lstm", "prefix-step-forced"])
def test_sums_are_learned_at_length_20_and_hold_at_length_2000(name: str) -> None:
    *_, last = trainer(name, "epochs=2", "valid_length=2000", "batch_size=32").epochs()
    assert last.accuracy == 1.0


def test_the_curriculum_lets_each_epoch_read_the_first_numbers_of_each_sequence() -> None:
    run = trainer("prefix-lstm", *SMALL, "epochs=5", "sequence_length=8", "curriculum=0:2,1:5,3:8")
    read, step = [], run.step

    def watch(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        read.append((inputs, targets))
        return step(inputs, targets)

    run.step = watch  # type: ignore[method-assign]
    counted: list[int] = []
    list(run.epochs(lambda tokens, _loss: counted.append(tokens)))
    lengths = [length for length in (2, 5, 5, 8, 8) for _ in range(3)]
    assert counted == [4 * length for length in lengths]
    for (inputs, targets), whole, length in zip(read, run.corpus.train * 5, lengths, strict=True):
        assert torch.equal(inputs, whole[0][:, :length])
        assert torch.equal(targets, whole[1][:, :length])


def test_teacher_forcing_and_a_curriculum_go_on_bit_for_bit_where_they_were_stopped() -> None:
    settings = [*SMALL, "epochs=4", "sequence_length=8", "curriculum=0:3,2:8", "teacher_forcing=0.5"]
    whole, stopped = (trainer("prefix-step", *settings) for _ in range(2))
    torch.manual_seed(0)
    metrics = [dataclasses.replace(m, seconds=0, tokens_per_second=0) for m in whole.epochs()]
    states: list = []

    def save(_tokens: int, _loss: float) -> None:
        if stopped.steps == 7:  # inside the third epoch
            states.append(copy.deepcopy(stopped.state_dict()))

    torch.manual_seed(0)
    list(stopped.epochs(save))
    resumed = trainer("prefix-step", *settings)
    resumed.load_state_dict(states[0])
    list(resumed.epochs())
    assert [dataclasses.replace(m, seconds=0, tokens_per_second=0) for m in resumed.history][2:] == metrics[2:]
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], parameter), name


@pytest.mark.parametrize("name", PREFIX)
def test_every_recipe_of_sums_trains_and_writes_its_run(name: str, tmp_path: Path) -> None:
    recipe = override(RECIPES[name], SMALL)
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert (summary.recipe, summary.epochs, summary.target) == (name, 3, RECIPES[name].target)
    refused = CliRunner().invoke(commands, ["generate", str(tmp_path / "run"), "--prompt", "0 1"])
    assert refused.exit_code == 2 and "prefix-sums, which predicts no next tokens" in refused.output


def test_recipes_without_a_figure_to_beat_are_listed() -> None:
    lines = CliRunner().invoke(commands, ["recipes"]).output.splitlines()
    assert "prefix-step-200: accuracy, target none" in lines
    assert "prefix-step: accuracy, target at least 1" in lines


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stateful=true"], "the data prefix-sums need batches and valid_length of at least 1, stateful false and"),
        (["valid_length=0"], "the data prefix-sums need batches and valid_length of at least 1"),
        (["level=char"], "level: the data prefix-sums has no use for it"),
        (["curriculum=1:5"], "curriculum: expected pairs of rising epochs, the first one 0"),
        (["curriculum=0:5,2:9,2:20"], "curriculum: expected pairs of rising epochs"),
        (["curriculum=0:5,2:21"], "curriculum: expected lengths from 1 to 20"),
        (["teacher_forcing=0.5"], "teacher_forcing: the cell lstm has no use for it"),
        (["teacher_forcing=1.5"], "teacher_forcing: expected 0 to 1"),
        (["cell=feedback"], "the feedback cell has two layers, .* expected num_layers=2 and an embedding_size of 32"),
        (["cell=feedback", "num_layers=2", "tied=true"], "tied: the feedback cell has no use for it"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(RECIPES["prefix-lstm"], settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["batches=3"], "batches: the data human-numbers has no use for it"),
        (["curriculum=0:4"], "curriculum: it needs stateful false and predict every"),
    ],
)
def test_a_text_refuses_what_belongs_to_sums(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(RECIPES["hn-gru"], settings)
