"""Writing on: one token a step, with the state carried from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .data import Vocabulary
from .model import LanguageModel, evaluating


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[str],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Continues a text. Tokens come as they are drawn; the prompt is read once, from a zero state, and not repeated.

    The model's own state and mode stay as they are, so that a run may generate between two batches.

    Args:
        prompt: at least one token.
        length: how many tokens to draw.
        temperature: logits are divided by it; 0 takes the most likely token every time.
        top_k: draw among the k most likely tokens only.
        seed: makes the draws repeatable; None takes one from the system.

    Raises:
        UnknownTokenError: names the tokens of the prompt that the vocabulary lacks.
        ValueError: the prompt is empty, or an argument is out of range.
    """
    if not prompt:
        raise ValueError(f"the prompt is empty: give at least one token, such as {vocabulary.tokens[0]!r}")
    if length < 0:
        raise ValueError(f"length: expected at least 0, got {length}")
    if not temperature >= 0:
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return _continue(model, vocabulary, vocabulary.encode(prompt), length, temperature, top_k, generator)


def _continue(
    model: LanguageModel,
    vocabulary: Vocabulary,
    tokens: Tensor,
    length: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Iterator[str]:
    state = None
    for _ in range(length):
        # Entered anew for each token: what a suspended generator leaves set would hold in the caller's code.
        with evaluating(model):
            output, state = model.run(tokens[None], state)
        tokens = choose(output.logits[0, -1], temperature, top_k, generator)[None]
        yield vocabulary.tokens[int(tokens)]


def choose(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draws a token from softmax(logits / temperature), restricted to the ``top_k`` highest logits.

    Args:
        logits: ``[V]``, of any floating type, on the CPU.
        temperature: 0 takes the highest logit and draws nothing.

    Returns:
        its index, an int64 scalar.
    """
    if temperature == 0:
        return logits.argmax()
    logits, indices = logits.double().topk(min(top_k or len(logits), len(logits)))
    # Highest logit first: a low temperature sends the others to -inf and never divides inf by inf.
    probabilities = ((logits - logits[0]) / temperature).softmax(0)
    return indices[torch.multinomial(probabilities, 1, generator=generator)[0]]
