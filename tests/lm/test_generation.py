from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusedrnn.lm import Checkpoint, RunFolder, UnknownTokenError, generate
from fusedrnn.lm.generation import choose

PROMPT = ["one", "hundred", "."]


@pytest.fixture
def trained(run_folder: Path) -> Checkpoint:
    return RunFolder(run_folder).load_checkpoint()


def write(trained: Checkpoint, prompt: list[str] = PROMPT, length: int = 30, **options: Any) -> list[str]:
    return list(generate(trained.model, trained.vocabulary, prompt, length, **options))


def count_tokens(trained: Checkpoint) -> list[int]:
    """Collects how many steps each call of the recurrent layers was given."""
    calls: list[int] = []
    trained.model.rnn.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[0]))
    return calls


def test_a_restored_checkpoint_writes_the_same_text_for_the_same_seed(run_folder: Path, trained: Checkpoint) -> None:
    text = write(trained, temperature=1.3, seed=7)
    assert len(text) == 30
    assert write(RunFolder(run_folder).load_checkpoint(), temperature=1.3, seed=7) == text
    assert write(trained, temperature=1.3, seed=8) != text


def test_without_a_seed_draws_differ(trained: Checkpoint) -> None:
    assert write(trained, temperature=5.0) != write(trained, temperature=5.0)


def test_a_seed_leaves_the_global_generator_alone(trained: Checkpoint) -> None:
    before = torch.get_rng_state()
    write(trained, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prompt", [["one"], PROMPT, [*PROMPT, "one", "hundred", "one", "."]])
def test_greedy_text_equals_the_most_likely_tokens_of_the_whole_text_at_once(
    prompt: list[str], trained: Checkpoint
) -> None:
    trained.model.double()
    text = write(trained, prompt, temperature=0)
    whole = trained.vocabulary.encode([*prompt, *text])
    logits = trained.model.run(whole[None, :-1])[0].logits[0]
    assert trained.vocabulary.decode(logits.argmax(-1).tolist())[len(prompt) - 1 :] == text


def test_each_token_is_read_once_and_only_when_asked_for(trained: Checkpoint) -> None:
    calls = count_tokens(trained)
    text = generate(trained.model, trained.vocabulary, PROMPT, 5)
    assert calls == []
    next(text)
    assert calls == [3]
    assert len(list(text)) == 4
    assert calls == [3, 1, 1, 1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_own_state_and_mode_stay(training: bool, trained: Checkpoint) -> None:
    model = trained.model.train(training)
    model(torch.zeros(2, 3, dtype=torch.int64))
    state = model.state
    text = generate(model, trained.vocabulary, PROMPT, 3)
    next(text)
    assert all(m.training is training for m in model.modules())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    list(text)
    assert model.state is state


def test_length_zero_writes_nothing(trained: Checkpoint) -> None:
    assert write(trained, length=0) == []


def test_unknown_tokens_are_named(trained: Checkpoint) -> None:
    with pytest.raises(UnknownTokenError, match=r"'zwei', 'drei'$"):
        generate(trained.model, trained.vocabulary, ["one", "zwei", ".", "drei"], 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "the prompt is empty: give at least one token, such as 'one'"),
        ({"length": -1}, "length: expected at least 0, got -1"),
        ({"temperature": -0.5}, "temperature: expected at least 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature: expected at least 0, got nan"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"top_p": 0.0}, "top_p: expected more than 0, at most 1, got 0.0"),
        ({"top_p": 1.01}, "top_p: expected more than 0, at most 1, got 1.01"),
        ({"top_p": float("nan")}, "top_p: expected more than 0, at most 1, got nan"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_drawn(
    arguments: dict[str, Any], message: str, trained: Checkpoint
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(trained.model, trained.vocabulary, **{"prompt": PROMPT, "length": 5} | arguments)


LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0])


def frequencies(draws: int = 4000, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([choose(LOGITS, generator=generator, **options) for _ in range(draws)])
    return drawn.bincount(minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax_at_that_temperature(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    torch.testing.assert_close(frequencies(temperature=temperature), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("top_k", [1, 2, 4, 100])
def test_draws_stay_among_the_top_k_and_keep_their_proportions(top_k: int) -> None:
    kept = LOGITS.topk(min(top_k, 4)).indices
    expected = torch.zeros(4).index_put((kept,), LOGITS[kept].softmax(0))
    got = frequencies(top_k=top_k)
    assert torch.equal(got > 0, expected > 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The definition, token by token: which ones belong to it, [V]."""
    kept, total = torch.zeros(len(probabilities), dtype=torch.bool), 0.0
    for index in probabilities.argsort(descending=True).tolist():
        if total >= top_p:
            break
        kept[index] = True
        total += probabilities[index].item()
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.6, 0.9, 0.99, 1.0])
def test_draws_stay_in_the_nucleus_and_keep_their_proportions(top_p: float, temperature: float) -> None:
    probabilities = (LOGITS.double() / temperature).softmax(0)
    kept = nucleus(probabilities, top_p)
    got = frequencies(top_p=top_p, temperature=temperature)
    assert not (got > 0)[~kept].any()
    expected = torch.where(kept, probabilities, 0) / probabilities[kept].sum()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.03)


def test_the_nucleus_is_counted_among_the_top_k() -> None:
    # Of all tokens the best has 0.61, of the best two it has 0.73.
    assert (frequencies(top_p=0.7) > 0).tolist() == [False, True, False, True]
    assert (frequencies(top_p=0.7, top_k=2) > 0).tolist() == [False, True, False, False]


def test_a_nucleus_of_all_tokens_draws_what_none_does() -> None:
    logits = torch.randn(50).sort(descending=True).values  # which topk() leaves in their order
    for seed in range(20):
        one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
        assert choose(logits, generator=one) == choose(logits, top_p=1.0, generator=other)


def test_a_narrow_nucleus_of_a_flat_distribution_holds_as_many_as_it_takes() -> None:
    got = {choose(torch.zeros(8), top_p=0.25 - 1e-6).item() for _ in range(200)}
    assert len(got) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_logits_may_have_any_floating_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([choose(LOGITS.to(dtype), generator=generator) for _ in range(4000)])
    torch.testing.assert_close(drawn.bincount(minlength=4) / 4000, LOGITS.softmax(0), rtol=0, atol=0.03)


def test_many_draws_pass_a_chi_squared_test() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, generator=generator)
    draws = 20_000
    counts = torch.stack([choose(logits, 1.5, generator=generator) for _ in range(draws)]).bincount(minlength=20)
    expected = (logits.double() / 1.5).softmax(0) * draws
    assert ((counts - expected).square() / expected).sum() < 43.8  # one in a thousand, for 19 degrees of freedom


def test_an_endless_temperature_draws_every_token_alike() -> None:
    got = frequencies(temperature=float("inf"))
    torch.testing.assert_close(got, torch.full((4,), 0.25), rtol=0, atol=0.03)


@pytest.mark.parametrize("top_p", [None, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0, float("inf")])
def test_a_token_of_probability_zero_is_never_drawn(temperature: float, top_p: float | None) -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])
    got = {choose(logits, temperature, top_p=top_p).item() for _ in range(100)}
    assert got == ({1} if temperature == 0 else {1, 3})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_logits_that_are_no_numbers_are_refused(bad: float, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="got NaN or infinity"):
        choose(torch.tensor([0.5, bad, 1.0]), **options)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-310])
def test_a_temperature_near_zero_takes_the_most_likely_token(temperature: float) -> None:
    assert choose(LOGITS, temperature).item() == 1
    assert choose(LOGITS, temperature, top_p=0.9).item() == 1
