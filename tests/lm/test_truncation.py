"""TBPTT(k1, k2): against a loop over steps that keeps every state, and in models and trainers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn import reference
from fusedrnn.lm import Carried, Corpus, FeedbackModel, Recipe, RecipeError, Trainer, truncated_bptt

T, B, I, H = 23, 2, 3, 4
CELLS = {"lstm": fusedrnn.LSTM, "gru": fusedrnn.GRU, "rnn_tanh": fusedrnn.RNN}


def layer_of(cell: str) -> nn.RNNBase:
    torch.manual_seed(0)
    return CELLS[cell](I, H, dtype=torch.float64)


def sequence() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(y: Tensor) -> Tensor:
    return (2 * y).sin().sum()


def descend(layer: nn.RNNBase, loss: Tensor) -> list[Tensor]:
    """The gradients, after a step down along them."""
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter -= 0.05 * gradient
    return list(gradients)


def by_hand(cell: str, k1: int, k2: int) -> Iterator[list[Tensor]]:
    """Step by step: keeps the input and the state before every step, and goes back to them."""
    layer, x = layer_of(cell), sequence()
    start = x.new_zeros(B, H)
    states: dict[int, tuple[Tensor, ...]] = {0: (start, start) if cell == "lstm" else (start,)}
    for end in [*range(k1, T, k1), T]:
        begin = max(0, end - k2 if end % k1 == 0 else (end // k1 + 1) * k1 - k2)
        state, outputs = states[begin], []
        for t in range(begin, end):
            states[t] = tuple(s.detach() for s in state)
            state = reference.STEPS[cell](x[t], state, *layer.all_weights[0])
            outputs.append(state[0])
        states[end] = tuple(s.detach() for s in state)
        new = end % k1 or k1
        yield descend(layer, loss_of(torch.stack(outputs[-new:])))


@pytest.mark.parametrize("k1, k2", [(1, 1), (4, 4), (1, 5), (3, 4), (3, 7), (5, 10), (4, 12), (6, 100)])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_a_loop_that_goes_back_k2_steps(cell: str, k1: int, k2: int) -> None:
    layer, carried, windows = layer_of(cell), None, 0
    for x, expected in zip(sequence().split(k1), by_hand(cell, k1, k2), strict=True):
        y, carried = truncated_bptt(layer, x, carried, back=k2)
        assert y.shape == (len(x), B, H)
        for got, right in zip(descend(layer, loss_of(y)), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)
        windows += 1
    assert windows == -(-T // k1)


@pytest.mark.parametrize("cell", CELLS)
def test_k2_of_k1_is_to_detach_after_every_piece(cell: str) -> None:
    ours, theirs, carried, hx = layer_of(cell), layer_of(cell), None, None
    for x in sequence()[:20].split(4):
        y, carried = truncated_bptt(ours, x, carried, back=4)
        expected, hx = theirs(x, hx)
        hx = tuple(s.detach() for s in hx) if cell == "lstm" else hx.detach()
        for got, right in zip(descend(ours, loss_of(y)), descend(theirs, loss_of(expected)), strict=True):
            assert torch.equal(got, right)


def test_batch_first_and_inputs_that_require_gradients_are_served() -> None:
    layer = fusedrnn.GRU(I, H, batch_first=True, dtype=torch.float64)
    x = sequence().transpose(0, 1).requires_grad_()
    outputs, carried = [], None
    for piece in x.split(5, 1):
        y, carried = truncated_bptt(layer, piece, carried, back=8, dim=1)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x)[0], rtol=1e-12, atol=1e-14)
    torch.cat(outputs[:2], 1).sum().backward()
    assert x.grad is not None
    assert x.grad[:, :10].all() and not x.grad[:, 10:].any()


@pytest.mark.parametrize(
    ("lengths", "back", "message"),
    [
        ([5], 4, "back: expected at least the 5 steps of the inputs, got 4"),
        ([3, 3, 4], 5, "inputs: expected at most 3 steps, as in the last call, got 4"),
    ],
)
def test_pieces_that_are_too_long_are_refused(lengths: list[int], back: int, message: str) -> None:
    layer, carried = layer_of("gru"), None
    with pytest.raises(ValueError, match=message):
        for x in sequence().split([*lengths, T - sum(lengths)]):
            _, carried = truncated_bptt(layer, x, carried, back=back)


# Models and trainers


def trainer(recipe: Recipe, corpus: Corpus, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    recipe = dataclasses.replace(recipe, **changes)
    return Trainer(recipe.make_model(len(corpus.vocabulary)).double(), corpus, recipe)


def test_a_recipe_whose_k2_is_its_sequence_length_trains_with_the_same_bits(
    small_recipe: Recipe, small_corpus: Corpus
) -> None:
    losses = []
    for length in (None, 6):
        run = trainer(small_recipe, small_corpus, sequence_length=6, backprop_length=length)
        losses.append([run.step(*batch) for batch in small_corpus.train[:8]])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("cell", ["lstm", "gru", "feedback"])
def test_a_trainer_goes_back_and_its_loss_is_that_of_the_new_tokens(
    cell: str, small_recipe: Recipe, small_corpus: Corpus
) -> None:
    plain = {"dropout": 0.0, "learning_rate": 1e-9, "sequence_length": 6, "cell": cell, "ar": 0.7, "tar": 0.3}
    if cell == "feedback":
        plain |= {"tied": False, "recurrent_init": "uniform"}
    run = trainer(small_recipe, small_corpus, backprop_length=16, **plain)
    whole = trainer(small_recipe, small_corpus, **plain).model
    inputs, targets = (torch.cat(tensors, 1) for tensors in zip(*small_corpus.train[:6], strict=True))
    for index, batch in enumerate(small_corpus.train[:6]):
        end, begin = 6 * (index + 1), max(0, 6 * (index + 1) - 16)
        # The weights hardly move: the state at the window's beginning is that of one pass over all before it.
        start = whole.run(inputs[:, :begin])[1] if begin else None
        output, _ = whole.run(inputs[:, begin:end], None if start is None else tuple(s.detach() for s in start))
        logits, raw = output.logits[:, -6:], output.raw[:, -6:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets[:, end - 6 : end].flatten())
        objective = loss + 0.7 * raw.square().mean() + 0.3 * (raw[:, 1:] - raw[:, :-1]).square().mean()
        assert run.step(*batch) == pytest.approx(loss.item(), rel=1e-5)
        expected = torch.autograd.grad(objective, list(whole.parameters()))
        for parameter, right in zip(run.model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, right, rtol=1e-4, atol=1e-7)


def test_a_model_forgets_what_it_would_read_again_with_its_state() -> None:
    torch.manual_seed(0)
    model = FeedbackModel(5, 4)
    tokens = torch.randint(5, (3, 9))
    first = model(tokens, back=20).logits
    assert model.earlier is not None and model.state is None
    with pytest.raises(ValueError, match="back: the last call had it, expected it again, or a reset"):
        model(tokens)
    assert not torch.equal(model(tokens, back=20).logits, first)
    model.reset()
    assert torch.equal(model(tokens, back=20).logits, first)
    assert torch.equal(model(tokens[:2], back=20).logits, first[:2])  # other rows: from the beginning
    assert model.to("meta").earlier.device.type == "meta"
    with pytest.raises(ValueError, match="back: expected no other option, got targets"):
        model(tokens, back=20, targets=tokens)


def test_what_is_carried_holds_no_graph() -> None:
    _, carried = truncated_bptt(layer_of("lstm"), sequence()[:4].requires_grad_(), back=6)
    assert isinstance(carried, Carried)
    assert carried.earlier is not None and not carried.earlier.requires_grad
    _, carried = truncated_bptt(layer_of("lstm"), sequence()[:4], carried, back=6)
    assert carried.earlier is not None and len(carried.earlier) == 2
    assert not any(s.requires_grad for s in carried.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backprop_length": 15}, r"backprop_length: expected at least sequence_length \(16\), or None, got 15"),
        ({"backprop_length": 20, "stateful": False}, "backprop_length: it needs stateful true, leave it at None"),
        ({"backprop_length": 20, "detach_every": 4}, "detach_every: training with backprop_length has no use for it"),
    ],
)
def test_a_recipe_that_cannot_go_back_is_refused(changes: dict[str, Any], message: str, small_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(small_recipe, **changes)
