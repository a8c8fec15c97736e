"""Writing on: one token a step, with the state carried from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .data import Vocabulary
from .model import LanguageModel, evaluating

_HOT = 1e300  # a temperature at which all tokens are alike, and noise times it is still finite


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
    return _continue(model, vocabulary, vocabulary.encode(prompt)[None], length, temperature, top_k, generator)


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
            logits, state = model.predict(tokens, state)
        token = choose(logits[0], temperature, top_k, generator)
        tokens = token.view(1, 1)
        yield vocabulary.tokens[int(token)]


def choose(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draws a token from softmax(logits / temperature), restricted to the ``top_k`` highest logits.

    The token whose logit is highest after Gumbel noise, times the temperature, has been added to each is such a draw
    (Gumbel 1954, Maddison et al. 2014): nothing is divided, so no temperature is too low.

    Args:
        logits: ``[V]``, of any floating type, on the CPU.
        temperature: 0 takes the highest logit and draws nothing.

    Returns:
        its index, an int64 scalar.

    Raises:
        RuntimeError: a logit is NaN or +inf.
    """
    indices = None
    if top_k is not None and top_k < len(logits):
        logits, indices = logits.topk(top_k)
    if temperature != 0:
        # The negative logarithm of an exponential variable has Gumbel's distribution.
        noise = torch.empty_like(logits, dtype=torch.float64).exponential_(generator=generator).log_()
        logits = torch.sub(logits, noise, alpha=min(temperature, _HOT))
    if not math.isfinite(logits.max()):
        raise RuntimeError("logits: expected numbers below infinity, got NaN or infinity")
    choice = logits.argmax()
    return choice if indices is None else indices[choice]
