"""What a training run is: what is read, which model, how it is trained, and the figure it is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

from .data import SOURCES, Corpus, Predict, make_corpus
from .errors import DataError, RecipeError
from .model import Backend, Cell, LanguageModel, RecurrentInit, Unroll
from .text import Level, find_text, read_text, replace_rare, split_lines, split_tokens

Metric = Literal["accuracy", "valid_loss"]
Schedule = Literal["one-cycle", "stepwise"]


class Goal:
    """A figure to reach."""

    metric: Metric
    target: float | None

    @property
    def lower_is_better(self) -> bool:
        """Whether a small value of the metric is a good one."""
        return self.metric == "valid_loss"

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is as good as the target; True where there is none."""
        if self.target is None:
            return True
        return value <= self.target if self.lower_is_better else value >= self.target


@dataclass(frozen=True, kw_only=True)
class Recipe(Goal):
    """All that defines a run but its seed and its backend.

    Attributes:
        name: what the command line calls it.
        source: where model, training and target come from, in a sentence or two.
        measured: what this package reached, and how it was measured.
        metric: a field of :class:`~fusedrnn.lm.training.EpochMetrics`. Accuracy is better high, a loss low.
        target: the value that the metric should reach in the last epoch; None where there is nothing to compare with.
        data: a key of :data:`~fusedrnn.lm.data.SOURCES`, or a text file: its path, or its name in the folder
            FUSEDRNN_DATA. Of a text file the first four fifths of the lines train and the others validate (of the
            sequences, where there are fewer than ten lines).
        data_url: where the text file can be downloaded.
        level, encoding, lower, min_freq: how a text file is read: "char" or "word", its encoding, whether it is
            lower-cased, and how often a token must occur so as not to be "<unk>".
        sequence_length: tokens that a batch holds of each row, which is also how far gradients flow back.
        batch_size: rows. Where the recipe is stateful, each reads a stretch of the text of its own.
        stateful: carry the state from batch to batch. Otherwise every sequence starts from zeros; generation carries
            the state all the same.
        predict: the next token is predicted after "every" token of a sequence, or after its "last" one alone.
        cell, embedding_size, hidden_size, num_layers, dropout, tied, recurrent_init, shared_matrix, unroll: of
            :class:`~fusedrnn.lm.model.LanguageModel`.
        ar, tar: factors of the two penalties in :mod:`~fusedrnn.lm.regularization`.
        epochs: passes through the training part.
        schedule: "one-cycle" or "stepwise".
        learning_rate: in the one-cycle schedule (Smith and Topin 2017) its peak: it climbs along a cosine from
            ``learning_rate / div`` during the first ``pct_start`` of the steps, then falls to
            ``learning_rate / final_div``. In the stepwise schedule the rate of the first epoch.
        rates: of the stepwise schedule: pairs of a number of epochs and the rate from then on, in this order.
        momentum: AdamW's beta1 at the ends and at the peak of one-cycle; it falls while the learning rate climbs. The
            stepwise schedule keeps it: both numbers must agree.
        beta2, eps: AdamW's.
        weight_decay: decoupled from the gradient, times the learning rate, on every parameter.
        clip: the largest norm that the gradient may have, None for any.

    Raises:
        RecipeError: a field has a value that it cannot have, or one that another field would have ignored.
    """

    name: str
    source: str
    measured: str
    metric: Metric
    target: float | None

    data: str
    data_url: str = ""
    level: Level = "word"
    encoding: str = "utf-8"
    lower: bool = False
    min_freq: int = 1
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
    schedule: Schedule = "one-cycle"
    learning_rate: float
    rates: tuple[tuple[int, float], ...] = ()
    pct_start: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, values in _choices().items():
            if getattr(self, name) not in values:
                raise RecipeError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        for expected, holds, names in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if not all(holds(number) for number in (value if isinstance(value, tuple) else (value,))):
                    raise RecipeError(f"{name}: expected {expected}, got {value}")
        if self.clip is not None and not self.clip > 0:
            raise RecipeError(f"clip: expected more than 0, or None, got {self.clip}")
        if self.data in SOURCES:
            self._require_defaults(f"the data {self.data}", "level encoding lower min_freq data_url")
        if self.schedule == "one-cycle":
            self._require_defaults("the one-cycle schedule", "rates")
        else:
            self._require_defaults("the stepwise schedule", "pct_start div final_div")
            self._check_steps()

    def _require_defaults(self, user: str, names: str) -> None:
        """No field is ignored without a word."""
        for name in names.split():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise RecipeError(f"{name}: {user} has no use for it, leave it at {default!r}")

    def _check_steps(self) -> None:
        if self.momentum[0] != self.momentum[1]:
            raise RecipeError(
                f"momentum: the stepwise schedule keeps it, expected one number twice, got {self.momentum}"
            )
        epochs = [epoch for epoch, _ in self.rates]
        if epochs != sorted(set(epochs)) or not all(epoch > 0 and rate > 0 for epoch, rate in self.rates):
            raise RecipeError(f"rates: expected pairs of rising epochs and rates above 0, got {self.rates}")

    def make_corpus(self) -> Corpus:
        """Reads the data and cuts it into batches.

        Raises:
            DataError: the data cannot be found or read, or fill no batch of this size.
            OSError: the file cannot be read.
        """
        tokens, train_tokens = self._read()
        try:
            return make_corpus(
                tokens,
                self.sequence_length,
                self.batch_size,
                train_tokens=train_tokens,
                stateful=self.stateful,
                predict=self.predict,
            )
        except ValueError as error:
            raise DataError(
                f"the data are too short: {error}; take a smaller batch_size ({self.batch_size}) or sequence_length "
                f"({self.sequence_length})"
            ) from error

    def _read(self) -> tuple[list[str], int | None]:
        """The tokens, and how many of them train, if that does not depend on the sequences."""
        if self.data in SOURCES:
            return SOURCES[self.data](), None
        text = read_text(find_text(self.data, self.data_url), self.encoding)
        train, valid = split_lines(text.lower() if self.lower else text, 0.8)
        tokens = split_tokens(train, self.level)
        if valid is None:
            return replace_rare(tokens, self.min_freq), None
        return replace_rare(tokens + split_tokens(valid, self.level), self.min_freq), len(tokens)

    def split_prompt(self, text: str) -> list[str]:
        """Cuts a text as the data were cut."""
        return split_tokens(text.lower() if self.lower else text, self.level)

    def make_model(self, vocabulary_size: int, backend: Backend = "fused") -> LanguageModel:
        """Builds the model with new parameters, drawn from torch's global generator.

        Raises:
            RecipeError: there is no such backend, or the recipe's model cannot be built.
        """
        try:
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
        except ValueError as error:
            raise RecipeError(str(error)) from error


# Which numbers each of some fields may hold, in words and as a function; NaN satisfies none of them.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda n: n >= 1,
        "sequence_length batch_size embedding_size hidden_size num_layers epochs min_freq",
    ),
    ("at least 0, below 1", lambda n: 0 <= n < 1, "dropout momentum beta2"),
    ("0 to 1", lambda n: 0 <= n <= 1, "pct_start"),
    ("a finite number from 0 on", lambda n: 0 <= n < float("inf"), "ar tar weight_decay"),
    ("a finite number above 0", lambda n: 0 < n < float("inf"), "learning_rate div final_div eps"),
)


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The fields that hold one of a few words, with these."""
    hints = get_type_hints(Recipe)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
