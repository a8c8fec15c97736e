"""Named training runs: what is read, which model, how it is trained, and the figure it is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from .data import SOURCES, Corpus, make_corpus
from .model import Backend, Cell, LanguageModel, RecurrentInit


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that defines a run but its seed and its backend.

    Attributes:
        name: what the command line calls it.
        source: where model, training and target come from, in a sentence or two.
        measured: what this package reached, and how it was measured.
        metric: a field of :class:`~fusedrnn.lm.training.EpochMetrics`.
        target: the value that the metric should reach in the last epoch.
        data: a key of :data:`~fusedrnn.lm.data.SOURCES`.
        sequence_length: tokens that a batch holds of each row, which is also how far gradients flow back.
        batch_size: rows, each of which reads a stretch of the text of its own.
        cell, embedding_size, hidden_size, num_layers, dropout, tied, recurrent_init: of
            :class:`~fusedrnn.lm.model.LanguageModel`.
        ar, tar: factors of the two penalties in :mod:`~fusedrnn.lm.regularization`.
        epochs: passes through the training part.
        learning_rate: its peak in the one-cycle schedule (Smith and Topin 2017): it climbs along a cosine from
            ``learning_rate / div`` during the first ``pct_start`` of the steps, then falls to
            ``learning_rate / final_div``.
        momentum: AdamW's beta1 at the ends and at the peak; it falls while the learning rate climbs.
        beta2: AdamW's beta2.
        weight_decay: decoupled from the gradient, times the learning rate, on every parameter.
        clip: the largest norm that the gradient may have, None for any.
    """

    name: str
    source: str
    measured: str
    metric: str
    target: float

    data: str
    sequence_length: int
    batch_size: int

    cell: Cell
    embedding_size: int
    hidden_size: int
    num_layers: int
    dropout: float = 0.0
    tied: bool = False
    recurrent_init: RecurrentInit = "uniform"

    ar: float = 0.0
    tar: float = 0.0
    epochs: int
    learning_rate: float
    pct_start: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip: float | None = None

    def make_corpus(self) -> Corpus:
        """Reads the data and cuts it into batches.

        Raises:
            ValueError: the data fill no batch of this size.
        """
        return make_corpus(SOURCES[self.data](), self.sequence_length, self.batch_size)

    def make_model(self, vocabulary_size: int, backend: Backend = "fused") -> LanguageModel:
        """Builds the model with new parameters, drawn from torch's global generator.

        Raises:
            ValueError: there is no such backend, or the recipe's model cannot be built.
        """
        return LanguageModel(
            vocabulary_size,
            self.embedding_size,
            self.hidden_size,
            self.num_layers,
            self.cell,
            dropout=self.dropout,
            tied=self.tied,
            recurrent_init=self.recurrent_init,
            backend=backend,
        )


_HN_GRU = Recipe(
    name="hn-gru",
    source=(
        "After the regularized LSTM of Howard and Gugger, Deep Learning for Coders (2020), chapter 12 (0.869, 0.874 in "
        "its best epoch). Changed: GRU, orthogonal recurrent matrices, weight decay 0.5 in place of 0.1."
    ),
    measured=(
        "0.9648, mean of seeds 0 to 4 (0.9376 to 0.9747), the same with the backends fused and nn; one CPU thread, "
        "torch 2.13. The two changed settings were chosen on seeds 0 to 14; on seeds 100 to 119 the mean is 0.9635 "
        "(0.9287 to 0.9754, backend nn)."
    ),
    metric="accuracy",
    target=0.95,
    data="human-numbers",
    sequence_length=16,
    batch_size=64,
    cell="gru",
    embedding_size=64,
    hidden_size=64,
    num_layers=2,
    dropout=0.5,
    tied=True,
    recurrent_init="orthogonal",
    ar=2.0,
    tar=1.0,
    epochs=15,
    learning_rate=1e-2,
    weight_decay=0.5,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (_HN_GRU,)}
"""Every recipe by its name."""
