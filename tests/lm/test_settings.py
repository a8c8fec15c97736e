from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fusedrnn.lm import RECIPES, TEXT, LanguageModelError, Recipe, RecipeError, override
from fusedrnn.lm.settings import differences

RECIPE = RECIPES["hn-gru"]


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("hidden_size=128", "hidden_size", 128),
        ("learning_rate=5e-3", "learning_rate", 5e-3),
        ("dropout=0", "dropout", 0.0),
        ("tied=false", "tied", False),
        ("stateful=true", "stateful", True),
        ("cell=rnn_relu", "cell", "rnn_relu"),
        ("cell=gru_reset_before", "cell", "gru_reset_before"),
        ("momentum=0.8,0.7", "momentum", (0.8, 0.7)),
        ("clip=0.5", "clip", 0.5),
        ("clip=none", "clip", None),
        ("clip_value=0.1", "clip_value", 0.1),
        ("target=none", "target", None),
        ("source=a=b", "source", "a=b"),
    ],
)
def test_a_setting_gets_the_type_of_its_field(setting: str, key: str, value: Any) -> None:
    base = dataclasses.replace(RECIPE, clip=1.0)
    changed = override(base, [setting])
    assert getattr(changed, key) == value
    assert type(getattr(changed, key)) is type(value)
    assert dataclasses.replace(changed, **{key: getattr(base, key)}) == base


def test_settings_apply_together_so_that_only_the_result_must_be_valid() -> None:
    settings = ["rates=4:1e-4,8:1e-5", "schedule=stepwise", "momentum=0.9,0.9"]
    for order in (settings, settings[::-1]):
        changed = override(RECIPE, order)
        assert (changed.schedule, changed.rates) == ("stepwise", ((4, 1e-4), (8, 1e-5)))
    assert override(changed, ["rates="]).rates == ()
    assert override(RECIPE, []) == RECIPE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epochs"], "'epochs' is no setting: expected key=value"),
        (["epoch=3"], "a recipe has no field 'epoch': expected one of ar, backprop_length, batch_size, batches,"),
        (["epochs=3", "epochs=4"], "epochs is set twice"),
        (["epochs=3.5"], "epochs: expected a whole number, got '3.5'"),
        (["epochs="], "epochs: expected a whole number, got ''"),
        (["dropout=half"], "dropout: expected a number, got 'half'"),
        (["tied=yes"], "tied: expected true or false, got 'yes'"),
        (["cell=sru"], "cell: expected one of lstm, gru, gru_reset_before, rnn_tanh, rnn_relu, feedback, got 'sru'"),
        (["momentum=0.9"], "momentum: expected 2 numbers with a comma between them, got '0.9'"),
        (["clip=no"], "clip: expected a number, or none, got 'no'"),
        (["rates=4"], "rates: expected pairs such as 4:1e-4,6:1e-5, got '4'"),
        (["epochs=0"], "epochs: expected at least 1, got 0"),
        (["dropout=1"], "dropout: expected at least 0, below 1, got 1.0"),
        (["dropout=nan"], "dropout: expected at least 0, below 1, got nan"),
        (["momentum=0.9,1.5"], r"momentum: expected at least 0, below 1, got \(0.9, 1.5\)"),
        (["learning_rate=inf"], "learning_rate: expected a finite number above 0, got inf"),
        (["weight_decay=-1"], "weight_decay: expected a finite number from 0 on, got -1.0"),
        (["pct_start=1.1"], "pct_start: expected 0 to 1, got 1.1"),
        (["clip=0"], "clip: expected more than 0, or None, got 0.0"),
        (["clip_value=-1"], "clip_value: expected more than 0, or None, got -1.0"),
    ],
)
def test_mistakes_are_named_with_what_would_be_right(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        override(RECIPE, settings)
    assert isinstance(caught.value, LanguageModelError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["level=char"], "level: the data human-numbers has no use for it"),
        (["min_freq=2"], "min_freq: the data human-numbers has no use for it"),
        (["rates=1:1e-3"], "rates: the one-cycle schedule has no use for it"),
        (["schedule=stepwise", "momentum=0.9,0.9", "div=10"], "div: the stepwise schedule has no use for it"),
        (["cycle=2"], "cycle: the one-cycle schedule has no use for it"),
        (["schedule=warm-restarts"], "momentum: the warm-restarts schedule keeps it, expected one number twice"),
        (["locked=true", "dropout=0"], "locked: neither dropout nor layer_dropout is above 0"),
        (["schedule=stepwise"], "momentum: the stepwise schedule keeps it, expected one number twice"),
        (["schedule=stepwise", "momentum=0.9,0.9", "rates=4:1e-3,2:1e-4"], "rates: expected pairs of rising epochs"),
        (["schedule=stepwise", "momentum=0.9,0.9", "rates=4:0"], "rates: expected pairs .* rates above 0"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(RECIPE, settings)


def test_every_field_can_be_set_to_what_it_is() -> None:
    recipe = override(TEXT, ["data=a.txt", "schedule=stepwise", "momentum=0.9,0.9"])
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, tuple):
            text = ",".join(map(str, value))
        else:
            text = str(value).lower() if value in (None, True, False) else str(value)
        assert override(recipe, [f"{field.name}={text}"]) == recipe


def test_a_model_that_cannot_be_built_is_the_recipes_error() -> None:
    with pytest.raises(RecipeError, match="embedding_size and hidden_size must agree, got 64 and 32"):
        override(RECIPE, ["hidden_size=32"]).make_model(30)


def test_whether_a_figure_is_reached_depends_on_the_metric() -> None:
    accuracy = dataclasses.replace(RECIPE, target=0.9)
    loss = dataclasses.replace(RECIPE, metric="valid_loss", target=1.5)
    assert (accuracy.lower_is_better, loss.lower_is_better) == (False, True)
    assert [accuracy.reached(value) for value in (0.89, 0.9, 0.91)] == [False, True, True]
    assert [loss.reached(value) for value in (1.49, 1.5, 1.51)] == [True, True, False]
    assert dataclasses.replace(RECIPE, target=None).reached(0.0)
    with pytest.raises(RecipeError, match="metric: expected one of accuracy, valid_loss, got 'f1'"):
        dataclasses.replace(RECIPE, metric="f1")


@pytest.mark.parametrize("name", RECIPES)
def test_differences_make_one_recipe_of_another(name: str) -> None:
    for base in (RECIPE, RECIPES["nietzsche-gru"], dataclasses.replace(TEXT, clip=None, target=0.5)):
        changed = override(base, differences(RECIPES[name], base))
        prose = {"source": "", "measured": ""}
        assert dataclasses.replace(changed, **prose) == dataclasses.replace(RECIPES[name], **prose)
    assert differences(RECIPES[name], RECIPES[name]) == []
