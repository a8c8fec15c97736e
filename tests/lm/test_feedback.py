"""The model that reads its own last answer, and the sums that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusedrnn.lm import FeedbackModel, prefix_sum_corpus, prefix_sums

V, H = 3, 8


def make(**options) -> FeedbackModel:
    torch.manual_seed(0)
    return FeedbackModel(V, H, **options).double()


def written_out(model: FeedbackModel, tokens: Tensor, answers: Tensor | None = None) -> Tensor:
    """Logits ``[B, T, V]`` by two matrices over [last answer, one-hot number]; all answers are told where given."""
    w_1 = torch.cat([model.feedback.weight, model.embedding.weight.T], 1)
    answer, logits = F.one_hot(torch.zeros(len(tokens), dtype=torch.int64), V).double(), []
    for t in range(tokens.shape[1]):
        if answers is not None and t:
            answer = F.one_hot(answers[:, t - 1], V).double()
        x = torch.cat([answer, F.one_hot(tokens[:, t], V).double()], 1)
        logits.append((x @ w_1.T + model.feedback.bias).relu() @ model.decoder.weight.T + model.decoder.bias)
        answer = logits[-1].softmax(-1)
    return torch.stack(logits, 1)


def test_it_is_two_matrices_over_its_last_answer_and_a_one_hot_number() -> None:
    model, (tokens, _) = make(), prefix_sums(4, 7)
    torch.testing.assert_close(model(tokens).logits, written_out(model, tokens), rtol=1e-12, atol=1e-14)


def test_teacher_forcing_tells_the_right_answers_in_training_alone() -> None:
    model, (tokens, sums) = make(teacher_forcing=1.0), prefix_sums(4, 7)
    told = model(tokens, targets=sums).logits
    torch.testing.assert_close(told, written_out(model, tokens, sums), rtol=1e-12, atol=1e-14)
    model.reset()
    torch.testing.assert_close(model.eval()(tokens).logits, written_out(model, tokens), rtol=1e-12, atol=1e-14)


def test_half_of_the_answers_are_told_each_with_its_own_draw() -> None:
    model, (tokens, sums) = make(teacher_forcing=0.5), prefix_sums(50, 40)
    told = F.one_hot(sums[:, :-1], V).double()
    seen: list[Tensor] = []
    model.feedback.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    model(tokens, targets=sums)
    forced = (torch.stack(seen, 1)[:, 1:] == told).all(-1)
    assert forced.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0 < forced[0].double().mean() < 1 and 0 < forced[:, 0].double().mean() < 1


def test_training_with_teacher_forcing_asks_for_the_answers() -> None:
    with pytest.raises(ValueError, match="targets: training with teacher forcing reads the right answers, got None"):
        make(teacher_forcing=0.5)(prefix_sums(2, 3)[0])


def test_a_carried_answer_continues_the_sequence() -> None:
    model, (tokens, _) = make(), prefix_sums(4, 9)
    whole = model(tokens).logits
    model.reset()
    parts = torch.cat([model(part).logits for part in tokens.split(4, 1)], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
    assert model.state is not None and model.state[0].shape == (1, 4, V)


@pytest.mark.parametrize("every", [1, 3, 20])
def test_gradients_of_detach_every_are_those_of_detached_windows(every: int) -> None:
    model, (tokens, sums) = make(detach_every=every), prefix_sums(4, 7)

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), sums.flatten()), model.parameters()))

    actual = gradients(model(tokens).logits)
    whole = make()
    logits = []
    for part in tokens.split(every, 1):
        logits.append(whole(part).logits)
        whole.detach()
    loss = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1), sums.flatten())
    for a, b in zip(actual, torch.autograd.grad(loss, whole.parameters()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_no_window_is_too_short_to_be_refused() -> None:
    with pytest.raises(ValueError, match="detach_every: expected at least 1, or None, got 0"):
        FeedbackModel(V, H, detach_every=0)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_prefix_sums_are_the_sums_of_uniform_numbers(n: int) -> None:
    numbers, sums = prefix_sums(50, 60, n)
    assert sums.shape == (50, 60)
    for row in range(3):
        assert [sum(numbers[row, : t + 1].tolist()) % n for t in range(60)] == sums[row].tolist()
    counts = numbers.flatten().bincount(minlength=n).double() / numbers.numel()
    torch.testing.assert_close(counts, torch.full((n,), 1 / n).double(), rtol=0.15, atol=0)


def test_the_corpus_of_sums_depends_on_its_own_seed_alone() -> None:
    corpora = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        corpora.append(prefix_sum_corpus(4, 6, 5, 50, seed=seed))
    assert [tuple(t.shape) for t in corpora[0].valid[0]] == [(4, 50)] * 2
    assert [len(corpora[0].train), len(corpora[0].vocabulary)] == [5, 3]
    digests = [corpus.digest() for corpus in corpora]
    assert digests[0] == digests[1] != digests[2]
    assert not torch.equal(corpora[0].train[0][0], corpora[0].train[1][0])
