from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusedrnn.lm import RECIPES, Corpus, DivergedError, Recipe, Trainer, make_corpus, train
from fusedrnn.lm.optimization import one_cycle


def trainer(recipe: Recipe, corpus: Corpus, *, backend="fused", seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(recipe.make_model(len(corpus.vocabulary), backend).double(), corpus, recipe)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_three_backends_train_alike_with_dropout(cell, small_recipe: Recipe, small_corpus: Corpus) -> None:
    recipe = dataclasses.replace(small_recipe, cell=cell)
    assert recipe.dropout == 0.5
    losses = {}
    for backend in ("fused", "nn", "reference"):
        run = trainer(recipe, small_corpus, backend=backend)
        losses[backend] = [run.step(*batch) for batch in small_corpus.train[:6]]
    assert losses["fused"] == pytest.approx(losses["nn"], rel=1e-10)
    assert losses["reference"] == pytest.approx(losses["nn"], rel=1e-10)
    assert len(set(losses["nn"])) == 6


def test_the_same_seed_gives_the_same_metrics_and_another_one_does_not(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    def history(seed: int) -> list[tuple[float, ...]]:
        epochs = trainer(small_recipe, small_corpus, seed=seed).epochs()
        return [(m.train_loss, m.valid_loss, m.accuracy) for m in epochs]

    first = history(seed=5)
    assert len(first) == small_recipe.epochs
    assert history(seed=5) == first
    assert history(seed=6) != first


def test_training_learns(small_recipe: Recipe, small_corpus: Corpus) -> None:
    targets = torch.cat([targets.flatten() for _, targets in small_corpus.train])
    unigram = torch.distributions.Categorical(targets.bincount().double()).entropy().item()
    *_, last = trainer(dataclasses.replace(small_recipe, epochs=20, dropout=0.1), small_corpus).epochs()
    assert last.train_loss < unigram / 2


def test_objective_is_cross_entropy_plus_both_penalties(small_recipe: Recipe, small_corpus: Corpus) -> None:
    run = trainer(dataclasses.replace(small_recipe, dropout=0.5, ar=0.7, tar=0.3), small_corpus)
    inputs, targets = small_corpus.train[0]
    torch.manual_seed(1)
    output, _ = run.model.run(inputs)
    h, dropped = output.raw, output.dropped
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    objective = cross_entropy + 0.7 * (dropped**2).mean() + 0.3 * ((h[:, 1:] - h[:, :-1]) ** 2).mean()
    expected = torch.autograd.grad(objective, list(run.model.parameters()))
    torch.manual_seed(1)
    assert run.step(inputs, targets) == pytest.approx(cross_entropy.item(), rel=1e-12)
    for parameter, gradient in zip(run.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)


def test_the_optimizer_takes_every_parameter_and_the_recipes_numbers(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    run = trainer(dataclasses.replace(small_recipe, weight_decay=0.03, beta2=0.97, eps=1e-6), small_corpus)
    (group,) = run.optimizer.param_groups
    assert (group["weight_decay"], group["betas"][1], group["eps"]) == (0.03, 0.97, 1e-6)
    assert {id(p) for p in group["params"]} == {id(p) for p in run.model.parameters()}


def test_an_epoch_trains_with_dropout_whatever_the_mode_was(small_recipe: Recipe, small_corpus: Corpus) -> None:
    losses = []
    for training in (True, False):
        run = trainer(small_recipe, small_corpus)
        run.model.train(training)
        losses.append(run.train_epoch())
    assert losses[0] == losses[1]


def test_state_is_carried_from_step_to_step_without_its_gradient(small_recipe: Recipe, small_corpus: Corpus) -> None:
    run = trainer(dataclasses.replace(small_recipe, dropout=0.0), small_corpus)
    run.step(*small_corpus.train[0])
    state = run.model.state
    assert state is not None
    assert not any(s.requires_grad for s in state)
    inputs, targets = small_corpus.train[1]
    output, _ = run.model.run(inputs, state)
    expected = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten()).item()
    assert run.step(inputs, targets) == expected


def test_an_epoch_and_a_validation_start_from_a_zero_state(small_recipe: Recipe, small_corpus: Corpus) -> None:
    dirty, clean = (trainer(small_recipe, small_corpus) for _ in range(2))
    assert clean.validate() == dirty.validate()
    for method in ("train_epoch", "validate"):
        dirty.model.state = (torch.full((2, 4, 24), 0.9, dtype=torch.float64),)
        torch.manual_seed(1)
        got = getattr(dirty, method)()
        torch.manual_seed(1)
        assert got == getattr(clean, method)()


def test_validation_changes_neither_parameters_nor_mode_nor_generator(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    run = trainer(small_recipe, small_corpus)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    generator = torch.get_rng_state()
    assert run.validate() == run.validate()
    assert run.model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


def test_validation_weighs_every_token_alike(small_recipe: Recipe, small_corpus: Corpus) -> None:
    run = trainer(small_recipe, small_corpus)
    inputs, targets = (torch.cat(tensors, 1) for tensors in zip(*small_corpus.valid, strict=True))
    logits = run.model.eval().run(inputs)[0].logits
    loss, accuracy = run.validate()
    assert loss == pytest.approx(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), rel=1e-12)
    assert accuracy == pytest.approx((logits.argmax(-1) == targets).double().mean().item(), rel=1e-12)


def test_one_cycle_rises_to_the_peak_and_falls_to_the_end(small_recipe: Recipe) -> None:
    recipe = dataclasses.replace(small_recipe, learning_rate=0.5, pct_start=0.25, momentum=(0.9, 0.8))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    schedule = one_cycle(optimizer, recipe, steps=100)
    rates, momenta = [], []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    peak = rates.index(max(rates))
    assert (rates[0], rates[24], rates[-1]) == pytest.approx((0.5 / 25, 0.5, 0.5 / 1e5))
    assert peak == 24
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert (momenta[0], momenta[24], momenta[-1]) == pytest.approx((0.9, 0.8, 0.9))


def test_the_stepwise_schedule_changes_the_rate_after_whole_epochs_and_keeps_the_momentum(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    recipe = dataclasses.replace(
        small_recipe,
        epochs=4,
        schedule="stepwise",
        learning_rate=1e-3,
        rates=((1, 1e-4), (3, 1e-2)),
        momentum=(0.9, 0.9),
    )
    run = trainer(recipe, small_corpus)
    steps = len(small_corpus.train)
    rates, momenta = [], set()
    for _ in range(4):
        for batch in small_corpus.train:
            rates.append(run.optimizer.param_groups[0]["lr"])
            momenta.add(run.optimizer.param_groups[0]["betas"][0])
            run.step(*batch)
    assert rates == pytest.approx([1e-3] * steps + [1e-4] * 2 * steps + [1e-2] * steps, rel=1e-12)
    assert momenta == {0.9}


def test_warm_restarts_fall_along_cosines_of_growing_length_and_keep_the_momentum(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    recipe = dataclasses.replace(
        small_recipe,
        epochs=13,
        schedule="warm-restarts",
        learning_rate=1e-2,
        cycle=1,
        cycle_factor=3,
        momentum=(0.9, 0.9),
    )
    run = trainer(recipe, small_corpus)
    steps = len(small_corpus.train)
    rates, momenta = [], set()
    for _ in range(13 * steps):
        rates.append(run.optimizer.param_groups[0]["lr"])
        momenta.add(run.optimizer.param_groups[0]["betas"][0])
        run.optimizer.step()
        run.schedule.step()
    # Loshchilov and Hutter 2017, equation 5, over 1, 3 and 9 epochs.
    expected = [
        0.5e-2 * (1 + math.cos(math.pi * step / length))
        for length in (steps, 3 * steps, 9 * steps)
        for step in range(length)
    ]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert momenta == {0.9}


def test_a_stepwise_schedule_without_decay_is_plain_adam(small_recipe: Recipe, small_corpus: Corpus) -> None:
    recipe = dataclasses.replace(
        small_recipe,
        dropout=0.0,
        ar=0.0,
        tar=0.0,
        schedule="stepwise",
        momentum=(0.9, 0.9),
        beta2=0.999,
        weight_decay=0.0,
    )
    run, plain = trainer(recipe, small_corpus), trainer(recipe, small_corpus).model
    optimizer = torch.optim.Adam(plain.parameters(), lr=recipe.learning_rate)
    for inputs, targets in small_corpus.train[:5]:
        loss = F.cross_entropy(plain(inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.detach()
        assert run.step(inputs, targets) == pytest.approx(loss.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["nietzsche-rnn", "nietzsche-rnn-cell", "nietzsche-gru", "nietzsche-lstm"])
def test_a_recipe_of_characters_trains_on_a_text_of_its_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_bytes("\n".join(f"{n} M\u00e4nner sangen {n % 7} Lieder" for n in range(1500)).encode("latin-1"))
    recipe = RECIPES[name]
    rates = ((1, 1e-4),) if recipe.rates else ()
    recipe = dataclasses.replace(
        recipe, data=str(path), epochs=2, rates=rates, hidden_size=min(recipe.hidden_size, 256)
    )
    summary = train(recipe, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert (summary.metric, summary.value) == ("valid_loss", lines[-1]["valid_loss"])
    assert summary.value < lines[0]["train_loss"]


def test_looping_the_cell_gives_the_losses_of_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(f"{n} of {n + 1}" for n in range(2000)))
    losses = {}
    for name in ("nietzsche-rnn", "nietzsche-rnn-cell"):
        recipe = dataclasses.replace(RECIPES[name], data=str(path))
        corpus = recipe.make_corpus()
        for backend in ("fused", "nn"):
            run = trainer(recipe, corpus, backend=backend)
            losses[name, backend] = [run.step(*batch) for batch in corpus.train[:12]]
    first = losses["nietzsche-rnn", "nn"]
    assert len(set(first)) == 12
    for others in losses.values():
        assert others == pytest.approx(first, rel=1e-9)
    ours, theirs = RECIPES["nietzsche-rnn"], RECIPES["nietzsche-rnn-cell"]
    texts = {name: getattr(theirs, name) for name in ("name", "source", "measured", "unroll")}
    assert dataclasses.replace(ours, **texts) == theirs


@pytest.mark.parametrize(
    "limits", [{}, {"clip": 1e-3}, {"clip_value": 1e-3}, {"clip": 1e-2, "clip_value": 2e-3}], ids=str
)
def test_the_gradient_is_clipped_where_the_recipe_says_so(
    limits: dict[str, float], small_recipe: Recipe, small_corpus: Corpus
) -> None:
    def gradients(**limits: float) -> list[torch.Tensor]:
        run = trainer(dataclasses.replace(small_recipe, **limits), small_corpus)
        run.step(*small_corpus.train[0])
        return [p.grad for p in run.model.parameters() if p.grad is not None]

    expected = gradients()
    assert nn.utils.get_total_norm(expected).item() > 0.1
    if "clip_value" in limits:
        expected = [g.clamp(-limits["clip_value"], limits["clip_value"]) for g in expected]
    if "clip" in limits:
        scale = limits["clip"] / nn.utils.get_total_norm(expected).item()
        assert scale < 1
        expected = [g * scale for g in expected]
    for got, right in zip(gradients(**limits), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-3, atol=0)  # torch adds 1e-6 to the norm


def test_a_loss_that_is_not_finite_stops_before_the_parameters_change(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    run = trainer(small_recipe, small_corpus)
    run.step(*small_corpus.train[0])
    with torch.no_grad():
        run.model.decoder.bias[0] = float("nan")
    before = run.model.rnn.weight_hh_l0.detach().clone()
    with pytest.raises(DivergedError, match="training loss at step 2 is nan"):
        run.step(*small_corpus.train[1])
    with pytest.raises(DivergedError, match="validation loss after step 1 is nan"):
        run.validate()
    assert torch.equal(run.model.rnn.weight_hh_l0, before)


def test_a_run_that_diverges_keeps_its_last_good_epoch(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def diverge(self: Trainer, *batch: torch.Tensor) -> float:
        if self.steps == 60:
            with torch.no_grad():
                self.model.decoder.bias[0] = float("inf")
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "step", diverge)
    with pytest.raises(DivergedError, match=r"at step 61 is .*; .*checkpoint\.pt keeps the model of step 49$"):
        train(small_recipe, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "metrics.jsonl"]


def test_a_run_depends_on_its_seed_and_not_on_what_was_drawn_before(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(small_recipe, epochs=1, num_layers=1)
    values = []
    for name, seed, drawn in (("a", 1, 0), ("b", 1, 5), ("c", 2, 0)):
        torch.rand(drawn)
        train(recipe, tmp_path / name, seed=seed)
        values.append(json.loads((tmp_path / name / "metrics.jsonl").read_text())["valid_loss"])
    assert values[0] == values[1] != values[2]


def test_the_loss_is_that_of_the_targets_there_are(small_recipe: Recipe, numbers: list[str]) -> None:
    recipe = dataclasses.replace(small_recipe, dropout=0.0, ar=0.0, tar=0.0)
    corpus = make_corpus(numbers[:300], 6, 4, predict="last")
    run = trainer(recipe, corpus)
    inputs, targets = corpus.train[0]
    assert targets.shape == (4, 1)
    expected = F.cross_entropy(run.model.run(inputs)[0].logits[:, -1], targets[:, 0])
    assert run.step(inputs, targets) == pytest.approx(expected.item(), rel=1e-12)
    outputs, state = [], None
    for inputs, _ in corpus.valid:
        output, state = run.model.eval().run(inputs, state)
        outputs.append(output.logits[:, -1])
    logits, targets = torch.cat(outputs), torch.cat([targets[:, 0] for _, targets in corpus.valid])
    loss, accuracy = run.validate()
    assert loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-12)
    assert accuracy == (logits.argmax(-1) == targets).double().mean().item()


def test_a_stateless_recipe_reads_every_batch_from_a_zero_state(small_recipe: Recipe, numbers: list[str]) -> None:
    recipe = dataclasses.replace(small_recipe, dropout=0.0, stateful=False)
    corpus = make_corpus(numbers[:300], 6, 4, stateful=False)
    run = trainer(recipe, corpus)
    assert len(corpus.valid[-1][0]) < 4
    run.step(*corpus.train[0])
    inputs, targets = corpus.train[1]
    expected = F.cross_entropy(run.model.run(inputs)[0].logits.flatten(0, 1), targets.flatten()).item()
    assert run.step(inputs, targets) == expected
    whole = tuple(torch.cat(tensors) for tensors in zip(*corpus.valid, strict=True))
    logits = run.model.eval().run(whole[0])[0].logits.flatten(0, 1)
    assert run.validate()[0] == pytest.approx(F.cross_entropy(logits, whole[1].flatten()).item(), rel=1e-12)


def test_the_two_first_models_of_the_book_train_alike(numbers: list[str]) -> None:
    losses = []
    for name, unroll in (("hn-literal", "literal"), ("hn-loop", "cell"), ("hn-loop", "layer")):
        recipe = dataclasses.replace(RECIPES[name], unroll=unroll)
        corpus = make_corpus(numbers[:3000], 3, 64, stateful=False, predict="last")
        run = trainer(recipe, corpus)
        losses.append([run.step(*batch) for batch in corpus.train])
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "quiet", "shown"), [(Terminal, False, True), (Terminal, True, False), (io.StringIO, False, False)]
)
def test_progress_is_shown_on_a_terminal_unless_quiet(
    stream: type[io.StringIO],
    quiet: bool,
    shown: bool,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = stream()
    monkeypatch.setattr("sys.stderr", output)
    train(dataclasses.replace(small_recipe, num_layers=1), tmp_path / "run", quiet=quiet)
    expected = ("hn-gru: 100%", "loss ", "accuracy 0.", "token/s")
    assert all(text in output.getvalue() for text in expected) if shown else output.getvalue() == ""


def test_recipes_are_listed_under_their_own_names() -> None:
    assert list(RECIPES) == [recipe.name for recipe in RECIPES.values()]
    assert "hn-gru" in RECIPES


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("hn-")])
def test_every_recipe_of_human_numbers_trains(name: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES[name], epochs=1)
    recipe = dataclasses.replace(recipe, embedding_size=16, hidden_size=16)
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert (summary.recipe, summary.epochs) == (name, 1)
    assert 0.1 < summary.value < 1
