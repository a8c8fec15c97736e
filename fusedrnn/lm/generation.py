"""Writing on: one token a step, with the state carried from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Continues a text. Tokens come as they are drawn; the prompt is read once, from a zero state, and not repeated.

    The model's own state and mode stay as they are, so that a run may generate between two batches.

    Args:
        prompt: at least one token.
        length: how many tokens to draw.
        temperature: logits are divided by it; 0 takes the most likely token every time.
        top_k: draw among the k most likely tokens only.
        top_p: draw among the nucleus only: the fewest most likely tokens that together have this probability.
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
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0, at most 1, got {top_p}")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    draw = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    return _continue(model, vocabulary, vocabulary.encode(prompt)[None], length, draw)


def _continue(
    model: LanguageModel,
    vocabulary: Vocabulary,
    tokens: Tensor,
    length: int,
    draw: Callable[[Tensor], Tensor],
) -> Iterator[str]:
    state = None
    for _ in range(length):
        # Entered anew for each token: what a suspended generator leaves set would hold in the caller's code.
        with evaluating(model):
            logits, state = model.predict(tokens, state)
        token = draw(logits[0])
        tokens = token.view(1, 1)
        yield vocabulary.tokens[int(token)]


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a token from softmax(logits / temperature), restricted to the ``top_k`` highest logits, and of these to the
    nucleus: the fewest tokens, likely ones first, that together have the probability ``top_p`` (Holtzman et al. 2020).

    The token whose logit is highest after Gumbel noise, times the temperature, has been added to each is such a draw
    (Gumbel 1954, Maddison et al. 2014): nothing is divided, so no temperature is too low.

    Args:
        logits: ``[V]``, of any floating type, on the CPU.
        temperature: 0 takes the highest logit and draws nothing.
        top_p: more than 0, at most 1, counted after temperature and ``top_k``.

    Returns:
        its index, an int64 scalar.

    Raises:
        RuntimeError: a logit is NaN or +inf.
    """
    indices = None
    if temperature == 0:
        top_k = top_p = None  # which keep the most likely token
    if top_p is not None or (top_k is not None and top_k < len(logits)):
        logits, indices = logits.topk(min(top_k or len(logits), len(logits)))
    if top_p is not None:
        logits = logits[: _nucleus(logits, temperature, top_p)]
    if temperature != 0:
        # The negative logarithm of an exponential variable has Gumbel's distribution.
        noise = torch.empty_like(logits, dtype=torch.float64).exponential_(generator=generator).log_()
        logits = torch.sub(logits, noise, alpha=min(temperature, _HOT))
    highest, choice = logits.max(0)
    if not math.isfinite(highest):
        raise RuntimeError("logits: expected numbers below infinity, got NaN or infinity")
    return choice if indices is None else indices[choice]


def _nucleus(logits: Tensor, temperature: float, top_p: float) -> int:
    """How many of the tokens, whose logits fall, it takes to have the probability ``top_p``; at least one."""
    # From the highest on, so that nothing divided by a low temperature overflows upwards.
    probabilities = ((logits.double() - logits[0]) / min(temperature, _HOT)).softmax(0)
    before = probabilities.cumsum(0) - probabilities
    return max(1, int((before < top_p).sum()))
