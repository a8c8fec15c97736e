"""The progress bar of a training."""

from __future__ import annotations

from .trainer import Trainer


class Progress:
    """A progress bar in tokens, with their number per second; silent where nobody watches."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        from tqdm import tqdm  # here, so that the package is of use without the extra [lm]

        recipe, windows = trainer.recipe, trainer.windows
        done = len(trainer.history)
        tokens = [windows.tokens(epoch) for epoch in range(recipe.epochs)]
        begun = windows.tokens(done, trainer.position) if done < recipe.epochs else 0
        # None: tqdm looks whether its output is a terminal.
        self._bar = tqdm(
            desc=recipe.name,
            total=sum(tokens),
            initial=sum(tokens[:done]) + begun,
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
