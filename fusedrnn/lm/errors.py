"""What can go wrong through no fault of the program. Each message is one sentence that says what to do."""

from __future__ import annotations


class LanguageModelError(Exception):
    """The base of the package's own errors; the command line prints one without a traceback."""


class UnknownTokenError(LanguageModelError, ValueError):
    """A text holds tokens that the vocabulary lacks."""


class StateError(LanguageModelError, ValueError):
    """A saved state does not belong to the trainer that should load it."""


class RunFolderError(LanguageModelError):
    """A run folder cannot be written, or what is in it cannot be read."""


class DivergedError(LanguageModelError, ArithmeticError):
    """The loss is no longer a finite number."""


class DataError(LanguageModelError, ValueError):
    """A text cannot be found, read, or cut into batches."""


class RecipeError(LanguageModelError, ValueError):
    """A recipe's field has a value that it cannot have."""


class ResumeWarning(UserWarning):
    """What to know of a run that was resumed. The command line prints it as a sentence."""
