"""The progress bar of a training."""

from __future__ import annotations

from .trainer import Trainer


class Progress:
    """A progress bar in tokens, with their number per second; silent where nobody watches."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        from tqdm import tqdm  # here, so that the package is of use without the extra [lm]

        recipe, batches = trainer.recipe, trainer.corpus.train
        done = len(trainer.history)
        # Of a batch, in each epoch.
        tokens = [len(batches[0][0]) * recipe.length_of_epoch(epoch) for epoch in range(recipe.epochs)]
        before = len(batches) * sum(tokens[:done]) + sum(tokens[done : done + 1]) * trainer.position
        # None: tqdm looks whether its output is a terminal.
        self._bar = tqdm(
            desc=recipe.name,
            total=len(batches) * sum(tokens),
            initial=before,
            unit="token",
            unit_scale=True,
            disable=True if quiet or not trainer.processes.first else None,
        )
        self._metric = recipe.metric
        self._value = "-"
        if trainer.history:
            self.epoch(getattr(trainer.history[-1], self._metric))

    def step(self, tokens: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}, {self._metric} {self._value}", refresh=False)
        self._bar.update(tokens)

    def epoch(self, value: float) -> None:
        self._value = f"{value:.4f}"

    def close(self) -> None:
        self._bar.close()
