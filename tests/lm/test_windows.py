"""Windows of random lengths: Merity et al. (2017), section 5."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fusedrnn.lm import TEXT, Corpus, Recipe, RecipeError, Trainer
from fusedrnn.lm.token_file import open_corpus
from fusedrnn.lm.windows import Windows

RANDOM = {"length_deviation": 2.0, "length_halved": 0.3}


def trainer(recipe: Recipe, corpus: Corpus, seed: int = 0, **changes: Any) -> Trainer:
    torch.manual_seed(seed)
    recipe = dataclasses.replace(recipe, sequence_length=6, **changes)
    return Trainer(recipe.make_model(len(corpus.vocabulary)).double(), corpus, recipe)


def lengths(windows: Windows, epoch: int) -> list[int]:
    return [inputs.shape[1] for inputs, _ in windows.of_epoch(epoch)]


def test_every_token_is_read_once_in_its_order_whatever_the_lengths(small_recipe: Recipe, small_corpus: Corpus) -> None:
    windows = Windows(small_corpus.train, dataclasses.replace(small_recipe, **RANDOM), seed=3)
    whole = [torch.cat(parts, 1) for parts in zip(*small_corpus.train, strict=True)]
    for epoch in range(3):
        for got, right in zip(zip(*windows.of_epoch(epoch), strict=True), whole, strict=True):
            assert torch.equal(torch.cat(got, 1), right)
        rows, steps = small_corpus.train[0][0].shape[0], lengths(windows, epoch)
        assert windows.start(epoch + 1) - windows.start(epoch) == len(steps)
        assert windows.tokens(epoch, 4) == rows * sum(steps[:4])
        assert windows.tokens(epoch) == windows.tokens(epoch, len(steps)) == rows * sum(steps)
        assert min(steps[:-1]) == 5 and max(steps) > 6


def test_epochs_and_seeds_have_lengths_of_their_own_in_any_order(small_recipe: Recipe, small_corpus: Corpus) -> None:
    recipe = dataclasses.replace(small_recipe, **RANDOM)
    all_lengths = [
        lengths(Windows(small_corpus.train, recipe, seed), epoch) for seed in (0, 1, 2**31 - 1) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, all_lengths))) == 6
    again = Windows(small_corpus.train, recipe, 1)
    assert [lengths(again, epoch) for epoch in (1, 0)] == all_lengths[3:1:-1]


def test_lengths_are_those_of_the_source(small_recipe: Recipe) -> None:
    recipe = dataclasses.replace(small_recipe, sequence_length=70, length_deviation=5.0, length_halved=0.05)
    batch = torch.zeros(1, 70, dtype=torch.int64)
    drawn = torch.tensor(lengths(Windows([(batch, batch)] * 20_000, recipe, 0), 0)[:-1]).double()
    halves, wholes = drawn[drawn < 52.5], drawn[drawn >= 52.5]
    assert len(halves) / len(drawn) == pytest.approx(0.05, abs=0.005)
    for some, mean in ((wholes, 70), (halves, 35)):
        assert some.mean().item() == pytest.approx(mean - 0.5, abs=0.6)  # int() rounds towards zero
        assert some.std().item() == pytest.approx(5, rel=0.05)


def test_a_token_file_is_cut_as_a_text_in_memory_is(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} and {n * n}" for n in range(200)))
    recipe = dataclasses.replace(TEXT, data=str(text), sequence_length=8, batch_size=4, **RANDOM)
    corpora = recipe.make_corpus(), open_corpus(recipe, tmp_path / "text.tokens")
    memory, file = (list(Windows(corpus.train, recipe, 5).of_epoch(1)) for corpus in corpora)
    assert len(memory) == len(file) > 20
    for batch, other in zip(memory, file, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_without_random_lengths_batches_are_read_as_they_are(small_recipe: Recipe, small_corpus: Corpus) -> None:
    windows = Windows(small_corpus.train, small_recipe)
    assert windows.of_epoch(1) is small_corpus.train
    assert windows.start(3) == 3 * len(small_corpus.train)
    assert windows.tokens(0, 2) == 2 * small_corpus.train[0][0].numel()


@pytest.mark.parametrize("schedule", ["one-cycle", "stepwise"])
def test_the_learning_rate_of_a_step_is_scaled_by_its_length(
    schedule: str, small_recipe: Recipe, small_corpus: Corpus
) -> None:
    stepwise = {"schedule": "stepwise", "momentum": (0.9, 0.9), "rates": ((1, 1e-3),)}
    run = trainer(small_recipe, small_corpus, **RANDOM, **(stepwise if schedule == "stepwise" else {}))
    (group,) = run.optimizer.param_groups
    rates, planned = [], []
    run.optimizer.register_step_pre_hook(lambda *_: rates.append(group["lr"]))
    for epoch in (0, 1):
        run.model.reset()
        for batch in run.windows.of_epoch(epoch):
            planned.append(group["lr"] * batch[0].shape[1] / 6)
            run.step(*batch)
    assert rates == pytest.approx(planned, rel=1e-12)
    assert len(set(rates)) > 6
    scales = [length / 6 for epoch in (0, 1) for length in lengths(run.windows, epoch)]
    flat = [rate / scale for rate, scale in zip(rates, scales, strict=True)]
    peak, start = small_recipe.learning_rate, run.windows.start(1)
    if schedule == "stepwise":
        assert flat == pytest.approx([peak] * start + [1e-3] * (len(flat) - start))
    else:
        assert (max(flat), flat[-1]) == pytest.approx((peak, peak / small_recipe.final_div), rel=1e-2)


def test_the_mean_loss_of_an_epoch_weighs_every_token_alike(small_recipe: Recipe, small_corpus: Corpus) -> None:
    still = {"learning_rate": 1e-12, "dropout": 0.0, "num_layers": 1}
    runs = [trainer(small_recipe, small_corpus, **still, **changes) for changes in ({}, RANDOM)]
    runs[1].model.load_state_dict(runs[0].model.state_dict())
    losses = [run.train_epoch() for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)
    assert runs[0].steps != runs[1].steps


def test_seeds_of_a_run_decide_its_lengths(small_recipe: Recipe, small_corpus: Corpus) -> None:
    seeds = [trainer(small_recipe, small_corpus, seed, **RANDOM).windows.seed for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stateful": False}, "length_deviation, length_halved: they need stateful true, predict every"),
        ({"predict": "last"}, "length_deviation, length_halved: they need stateful true, predict every"),
        ({"schedule": "warm-restarts", "momentum": (0.9, 0.9)}, "another schedule than warm-restarts"),
        ({"backprop_length": 20}, "backprop_length: training with random lengths has no use for it"),
        ({"length_halved": 1.5}, "length_halved: expected 0 to 1, got 1.5"),
        ({"length_deviation": -1.0}, "length_deviation: expected a finite number from 0 on, got -1.0"),
    ],
)
def test_recipes_that_cannot_have_random_lengths_are_refused(
    changes: dict[str, Any], message: str, small_recipe: Recipe
) -> None:
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(small_recipe, **(RANDOM | changes))
