"""The course of a run for TensorBoard, in the folder "tensorboard" of its run folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import LanguageModelError

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises LanguageModelError where the library is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise LanguageModelError("TensorBoard logs need tensorboard: pip install 'fusedrnn[tensorboard]'")


class TensorBoardLog:
    """Scalars against the number of the optimizer's steps.

    Args:
        run: the run folder.
        step: from here on what an earlier part of the run has logged is hidden: steps that are done again.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the extra [tensorboard]

        self._writer: Any = SummaryWriter(str(run / FOLDER), purge_step=step)

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Of one batch, with the learning rate of the next one."""
        self._writer.add_scalar("step/loss", loss, step)
        self._writer.add_scalar("step/learning_rate", learning_rate, step)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Of one epoch, which ends with that step."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"epoch/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
