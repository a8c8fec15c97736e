"""Language models on recurrent layers: data, models, regularization, training, generation, recipes, a command line.

Training and the command line use the libraries of the extra ``[lm]``; the rest needs torch alone.
"""

from __future__ import annotations

from .data import (
    Batch,
    Corpus,
    Vocabulary,
    cut_sequences,
    group_chunks,
    human_numbers,
    make_corpus,
    prefix_sum_corpus,
    prefix_sums,
)
from .errors import (
    DataError,
    DivergedError,
    LanguageModelError,
    RecipeError,
    ResumeWarning,
    RunFolderError,
    StateError,
    UnknownTokenError,
)
from .feedback import FeedbackModel
from .generation import generate
from .metrics import EpochMetrics, Summary
from .model import LanguageModel, Output, StatefulModel
from .recipe import Recipe
from .recipes import RECIPES, TEXT
from .regularization import (
    activation_regularization,
    embedding_dropout,
    locked_dropout,
    temporal_activation_regularization,
)
from .run_folder import Checkpoint, RunFolder, Settings
from .settings import override
from .trainer import Trainer
from .training import resume, train
from .truncation import Carried, truncated_bptt

__all__ = [
    "RECIPES",
    "TEXT",
    "Batch",
    "Carried",
    "Checkpoint",
    "Corpus",
    "DataError",
    "DivergedError",
    "EpochMetrics",
    "FeedbackModel",
    "LanguageModel",
    "LanguageModelError",
    "Output",
    "Recipe",
    "RecipeError",
    "ResumeWarning",
    "RunFolder",
    "RunFolderError",
    "Settings",
    "StateError",
    "StatefulModel",
    "Summary",
    "Trainer",
    "UnknownTokenError",
    "Vocabulary",
    "activation_regularization",
    "cut_sequences",
    "embedding_dropout",
    "generate",
    "group_chunks",
    "human_numbers",
    "locked_dropout",
    "make_corpus",
    "override",
    "prefix_sum_corpus",
    "prefix_sums",
    "resume",
    "temporal_activation_regularization",
    "train",
    "truncated_bptt",
]
