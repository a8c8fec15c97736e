"""What a training run is: what is read, which model, how it is trained, and the figure it is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

from .data import SOURCES, Corpus, Predict, make_corpus, prefix_sum_corpus
from .errors import DataError, RecipeError
from .feedback import FeedbackModel
from .model import Backend, Cell, LanguageModel, RecurrentInit, StatefulModel, Unroll
from .text import Level, find_text, read_text, replace_rare, split_lines, split_tokens

Metric = Literal["accuracy", "valid_loss"]
PREFIX_SUMS = "prefix-sums"
Schedule = Literal["one-cycle", "stepwise", "warm-restarts"]


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
        metric: a field of :class:`~fusedrnn.lm.metrics.EpochMetrics`. Accuracy is better high, a loss low.
        target: the value that the metric should reach in the last epoch; None where there is nothing to compare with.
        data: a key of :data:`~fusedrnn.lm.data.SOURCES`; "prefix-sums", whose answers are no next tokens
            (:func:`~fusedrnn.lm.data.prefix_sum_corpus`); or a text file: its path, or its name in the folder
            FUSEDRNN_DATA. Of a text file the first four fifths of the lines train and the others validate (of the
            sequences, where there are fewer than ten lines).
        data_url: where the text file can be downloaded.
        level, encoding, lower, min_freq: how a text file is read: "char" or "word", its encoding, whether it is
            lower-cased, and how often a token must occur so as not to be "<unk>".
        batches, valid_length: of prefix sums: how many batches an epoch reads, and the length that validates.
        sequence_length: tokens that a batch holds of each row, after which the optimizer steps: k1 of TBPTT(k1, k2).
        backprop_length: k2, how many tokens gradients flow back, by :func:`~fusedrnn.lm.truncated_bptt`: loss and
            penalties are of the new tokens alone. None for sequence_length.
        batch_size: rows. Where the recipe is stateful, each reads a stretch of the text of its own.
        length_deviation, length_halved: of windows of random lengths, see :class:`~fusedrnn.lm.windows.Windows`:
            their standard deviation around sequence_length, and the probability that it is around half of that. The
            learning rate of a step is scaled by its window's length over sequence_length. Zeros for no such windows;
            Merity et al. (2017) take 5 and 0.05.
        curriculum: pairs of a number of epochs and of the tokens of each sequence that are read from then on, for the
            others to be left out (Bengio et al. 2009); the first number is 0. Empty for whole sequences.
        stateful: carry the state from batch to batch. Otherwise every sequence starts from zeros; generation carries
            the state all the same.
        predict: the next token is predicted after "every" token of a sequence, or after its "last" one alone.
        cell: of :class:`~fusedrnn.lm.model.LanguageModel`; or "feedback", for
            :class:`~fusedrnn.lm.feedback.FeedbackModel`, of two layers, which takes of the following only hidden_size,
            dropout, teacher_forcing and detach_every.
        embedding_size, hidden_size, num_layers, dropout, layer_dropout, locked, embedding_dropout, weight_drop, tied,
            recurrent_init, shared_matrix, unroll, detach_every: of the model.
        teacher_forcing: of the feedback cell.
        ar, tar: factors of the two penalties in :mod:`~fusedrnn.lm.regularization`.
        epochs: passes through the training part.
        schedule: "one-cycle", "stepwise" or "warm-restarts".
        learning_rate: in the one-cycle schedule (Smith and Topin 2017) its peak: it climbs along a cosine from
            ``learning_rate / div`` during the first ``pct_start`` of the steps, then falls to
            ``learning_rate / final_div``. In the stepwise schedule the rate of the first epoch. With warm restarts
            (Loshchilov and Hutter 2017) it falls to 0 along a cosine in each cycle, and the next one starts from it.
        rates: of the stepwise schedule: pairs of a number of epochs and the rate from then on, in this order.
        cycle, cycle_factor: of warm restarts: the epochs of the first cycle, and how many times longer than the last
            one each next one is.
        momentum: AdamW's beta1 at the ends and at the peak of one-cycle; it falls while the learning rate climbs. The
            other schedules keep it: both numbers must agree.
        beta2, eps: AdamW's.
        weight_decay: decoupled from the gradient, times the learning rate, on every parameter.
        clip: the largest norm that the gradient may have, None for any.
        clip_value: the largest absolute value that each of its elements may have, None for any. Where both are given,
            the elements are clipped first.

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
    batches: int = 0
    valid_length: int = 0
    sequence_length: int
    backprop_length: int | None = None
    length_deviation: float = 0.0
    length_halved: float = 0.0
    curriculum: tuple[tuple[int, int], ...] = ()
    batch_size: int
    stateful: bool = True
    predict: Predict = "every"

    cell: Literal[Cell, "feedback"]
    embedding_size: int
    hidden_size: int
    num_layers: int
    dropout: float = 0.0
    layer_dropout: float = 0.0
    locked: bool = False
    embedding_dropout: float = 0.0
    weight_drop: float = 0.0
    tied: bool = False
    recurrent_init: RecurrentInit = "uniform"
    shared_matrix: bool = False
    unroll: Unroll = "layer"
    detach_every: int | None = None
    teacher_forcing: float = 0.0

    ar: float = 0.0
    tar: float = 0.0
    epochs: int
    schedule: Schedule = "one-cycle"
    learning_rate: float
    rates: tuple[tuple[int, float], ...] = ()
    cycle: int = 1
    cycle_factor: int = 2
    pct_start: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        for name, values in _choices().items():
            if getattr(self, name) not in values:
                raise RecipeError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        for expected, holds, names in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if not all(holds(number) for number in (value if isinstance(value, tuple) else (value,))):
                    raise RecipeError(f"{name}: expected {expected}, got {value}")
        for name in ("clip", "clip_value"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise RecipeError(f"{name}: expected more than 0, or None, got {limit}")
        if self.data in SOURCES or self.data == PREFIX_SUMS:
            self._require_defaults(f"the data {self.data}", "level encoding lower min_freq data_url")
        self._check_generated()
        self._check_truncation()
        self._check_feedback()
        for schedule, names in _OF_SCHEDULE.items():
            if schedule != self.schedule:
                self._require_defaults(f"the {self.schedule} schedule", names)
        if self.schedule != "one-cycle":
            self._check_steps()
        if self.locked and not (self.dropout or self.layer_dropout):
            raise RecipeError("locked: neither dropout nor layer_dropout is above 0, leave it at False")

    def _require_defaults(self, user: str, names: str) -> None:
        """No field is ignored without a word."""
        for name in names.split():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise RecipeError(f"{name}: {user} has no use for it, leave it at {default!r}")

    def _check_generated(self) -> None:
        if self.data != PREFIX_SUMS:
            self._require_defaults(f"the data {self.data}", "batches valid_length")
        elif self.batches < 1 or self.valid_length < 1 or self.stateful or self.predict != "every":
            raise RecipeError(
                f"the data {PREFIX_SUMS} need batches and valid_length of at least 1, stateful false and predict every"
            )
        if not self.curriculum:
            return
        epochs, lengths = zip(*self.curriculum, strict=True)
        if epochs[0] != 0 or list(epochs) != sorted(set(epochs)):
            raise RecipeError(f"curriculum: expected pairs of rising epochs, the first one 0, got {self.curriculum}")
        if not all(1 <= length <= self.sequence_length for length in lengths):
            raise RecipeError(f"curriculum: expected lengths from 1 to {self.sequence_length}, got {self.curriculum}")
        if self.stateful or self.predict != "every":
            raise RecipeError("curriculum: it needs stateful false and predict every")

    @property
    def random_lengths(self) -> bool:
        """Whether the windows that training reads have random lengths."""
        return bool(self.length_deviation or self.length_halved)

    def _check_truncation(self) -> None:
        if self.random_lengths:
            if not self.stateful or self.predict != "every" or self.schedule == "warm-restarts":
                raise RecipeError(
                    "length_deviation, length_halved: they need stateful true, predict every, and another schedule "
                    "than warm-restarts, which counts epochs of one number of steps"
                )
            self._require_defaults("training with random lengths", "backprop_length")
        if self.backprop_length is None:
            return
        if self.backprop_length < self.sequence_length:
            raise RecipeError(
                f"backprop_length: expected at least sequence_length ({self.sequence_length}), or None, got "
                f"{self.backprop_length}"
            )
        if not self.stateful:
            raise RecipeError("backprop_length: it needs stateful true, leave it at None")
        self._require_defaults("training with backprop_length", "detach_every teacher_forcing")

    def _check_feedback(self) -> None:
        if self.cell != "feedback":
            self._require_defaults(f"the cell {self.cell}", "teacher_forcing")
            return
        unused = "layer_dropout locked embedding_dropout weight_drop tied recurrent_init shared_matrix unroll"
        self._require_defaults("the feedback cell", unused)
        if self.num_layers != 2 or self.embedding_size != self.hidden_size:
            raise RecipeError(
                "the feedback cell has two layers, whose features are hidden_size: expected num_layers=2 and an "
                f"embedding_size of {self.hidden_size}, got {self.num_layers} and {self.embedding_size}"
            )

    def length_of_epoch(self, epoch: int) -> int:
        """How many tokens of each sequence an epoch, counted from 0, reads."""
        return [self.sequence_length, *(length for start, length in self.curriculum if epoch >= start)][-1]

    def _check_steps(self) -> None:
        if self.momentum[0] != self.momentum[1]:
            raise RecipeError(
                f"momentum: the {self.schedule} schedule keeps it, expected one number twice, got {self.momentum}"
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
        if self.data == PREFIX_SUMS:
            return prefix_sum_corpus(self.batch_size, self.sequence_length, self.batches, self.valid_length)
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

    def make_model(self, vocabulary_size: int, backend: Backend = "fused") -> StatefulModel:
        """Builds the model with new parameters, drawn from torch's global generator.

        Raises:
            RecipeError: there is no such backend, or the recipe's model cannot be built.
        """
        try:
            if self.cell == "feedback":  # plain PyTorch, whatever the backend
                return FeedbackModel(
                    vocabulary_size,
                    self.hidden_size,
                    dropout=self.dropout,
                    teacher_forcing=self.teacher_forcing,
                    detach_every=self.detach_every,
                )
            return LanguageModel(
                vocabulary_size,
                self.embedding_size,
                self.hidden_size,
                self.num_layers,
                self.cell,
                dropout=self.dropout,
                layer_dropout=self.layer_dropout,
                locked=self.locked,
                embedding_dropout=self.embedding_dropout,
                weight_drop=self.weight_drop,
                detach_every=self.detach_every,
                tied=self.tied,
                recurrent_init=self.recurrent_init,
                shared_matrix=self.shared_matrix,
                unroll=self.unroll,
                backend=backend,
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error


_OF_SCHEDULE: dict[Schedule, str] = {
    "one-cycle": "pct_start div final_div",
    "stepwise": "rates",
    "warm-restarts": "cycle cycle_factor",
}
# Which numbers each of some fields may hold, in words and as a function; NaN satisfies none of them.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda n: n >= 1,
        "sequence_length batch_size embedding_size hidden_size num_layers epochs cycle cycle_factor min_freq",
    ),
    ("at least 0, below 1", lambda n: 0 <= n < 1, "dropout layer_dropout embedding_dropout weight_drop momentum beta2"),
    ("0 to 1", lambda n: 0 <= n <= 1, "pct_start teacher_forcing length_halved"),
    ("at least 0", lambda n: n >= 0, "batches valid_length"),
    ("a finite number from 0 on", lambda n: 0 <= n < float("inf"), "ar tar weight_decay length_deviation"),
    ("a finite number above 0", lambda n: 0 < n < float("inf"), "learning_rate div final_div eps"),
)


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The fields that hold one of a few words, with these."""
    hints = get_type_hints(Recipe)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
