"""What a training run is: what is read, which model, how it is trained, and the figure it is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from .data import SOURCES, Corpus, Predict, make_corpus
from .model import Backend, Cell, LanguageModel, RecurrentInit, Unroll


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
        batch_size: rows. Where the recipe is stateful, each reads a stretch of the text of its own.
        stateful: carry the state from batch to batch. Otherwise every sequence starts from zeros.
        predict: the next token is predicted after "every" token of a sequence, or after its "last" one alone.
        cell, embedding_size, hidden_size, num_layers, dropout, tied, recurrent_init, shared_matrix, unroll: of
            :class:`~fusedrnn.lm.model.LanguageModel`.
        ar, tar: factors of the two penalties in :mod:`~fusedrnn.lm.regularization`.
        epochs: passes through the training part.
        learning_rate: its peak in the one-cycle schedule (Smith and Topin 2017): it climbs along a cosine from
            ``learning_rate / div`` during the first ``pct_start`` of the steps, then falls to
            ``learning_rate / final_div``.
        momentum: AdamW's beta1 at the ends and at the peak; it falls while the learning rate climbs.
        beta2, eps: AdamW's.
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
    stateful: bool = True
    predict: Predict = "every"

    cell: Cell
    embedding_size: int
    hidden_size: int
    num_layers: int
    dropout: float = 0.0
    tied: bool = False
    recurrent_init: RecurrentInit = "uniform"
    shared_matrix: bool = False
    unroll: Unroll = "layer"

    ar: float = 0.0
    tar: float = 0.0
    epochs: int
    learning_rate: float
    pct_start: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = None

    def make_corpus(self) -> Corpus:
        """Reads the data and cuts it into batches.

        Raises:
            ValueError: the data fill no batch of this size.
        """
        return make_corpus(
            SOURCES[self.data](),
            self.sequence_length,
            self.batch_size,
            stateful=self.stateful,
            predict=self.predict,
        )

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
            shared_matrix=self.shared_matrix,
            unroll=self.unroll,
            backend=backend,
        )
