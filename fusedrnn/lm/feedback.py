"""A recurrent network whose state is its own answer: two linear layers, and a loop that reads what they last said."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import Output, State, StatefulModel


class FeedbackModel(StatefulModel):
    """y_t = W_2 relu(W_1 [softmax(y_(t-1)), onehot(x_t)] + b_1) + b_2: a step from one answer to the next.

    Before the first step the answer is token 0, for certain. :attr:`state` is ``(softmax(y),)`` of the last step,
    ``[1, B, V]``. The columns of W_1 that belong to x_t are the rows of an embedding, which is the same and faster.

    Args:
        vocabulary_size: V, the number of tokens, in the input and as answers.
        hidden_size: H, features between the two layers.
        dropout: the probability of zeroing one of these.
        teacher_forcing: the probability, of each step and row, that the answer before it is replaced by the right one
            while training: 1 is teacher forcing (Williams and Zipser 1989), less is scheduled sampling (Bengio et al.
            2015) at a constant rate.
        detach_every: no gradient passes from step t to step t - 1 where this divides t: truncated back-propagation
            through time inside one call. None for all the way.

    Raises:
        ValueError: detach_every is below 1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int,
        *,
        dropout: float = 0.0,
        teacher_forcing: float = 0.0,
        detach_every: int | None = None,
    ) -> None:
        super().__init__()
        if detach_every is not None and detach_every < 1:
            raise ValueError(f"detach_every: expected at least 1, or None, got {detach_every}")
        self.feedback = nn.Linear(vocabulary_size, hidden_size)
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.decoder = nn.Linear(hidden_size, vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -(vocabulary_size**-0.5), vocabulary_size**-0.5)  # as of a Linear
        self.dropout, self.teacher_forcing, self.detach_every = dropout, teacher_forcing, detach_every

    def run(  # type: ignore[override]
        self, tokens: Tensor, state: State | None = None, *, targets: Tensor | None = None
    ) -> tuple[Output, State]:
        """Reads tokens from a given state, or from the beginning, and leaves :attr:`state` as it is.

        Args:
            tokens: int64 ``[B, T]``.
            targets: the right answers, int64 ``[B, T]``; read in training with teacher forcing, and only there.

        Raises:
            ValueError: there are no targets where they are read.
        """
        forced = self._draw_forced(tokens, targets)
        right = None if targets is None else F.one_hot(targets.t(), self.decoder.out_features)
        rows = self.embedding(tokens.t())
        answer = self._first(rows) if state is None else state[0][0]
        raw, dropped, logits = [], [], []
        for t, x in enumerate(rows):
            if t and forced is not None and right is not None:
                answer = torch.where(forced[t], right[t - 1].to(answer.dtype), answer)
            if t and self.detach_every and t % self.detach_every == 0:
                answer = answer.detach()
            raw.append((self.feedback(answer) + x).relu())
            dropped.append(F.dropout(raw[-1], self.dropout, self.training))
            logits.append(self.decoder(dropped[-1]))
            answer = logits[-1].softmax(-1)
        return Output(*(torch.stack(steps, 1) for steps in (logits, raw, dropped))), (answer[None],)

    def _first(self, rows: Tensor) -> Tensor:
        zeros = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
        return F.one_hot(zeros, self.decoder.out_features).to(rows.dtype)

    def _draw_forced(self, tokens: Tensor, targets: Tensor | None) -> Tensor | None:
        """Before which steps the right answer is told, bool ``[T, B, 1]``; None for no step."""
        if not (self.training and self.teacher_forcing):
            return None
        if targets is None:
            raise ValueError("targets: training with teacher forcing reads the right answers, got None")
        rows, steps = tokens.shape
        return torch.rand(steps, rows, 1, device=tokens.device) < self.teacher_forcing

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, teacher_forcing={self.teacher_forcing}, detach_every={self.detach_every}"
