"""A program for lm/test_distributed.py, to be run by torchrun: each process trains with the others, and compares.

    ranks.py gradients | stop FOLDER STEP | diverge FOLDER

`gradients` trains models of each kind together with the other processes and, beside that, alone on all rows, and fails
unless gradients, parameters, losses and states agree. `stop` trains killed_runs.RECIPE and ends the process before a
step. `diverge` does the same with a parameter that is no number in one process's rows only.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from killed_runs import RECIPE

from fusedrnn.lm import Recipe, Trainer, train
from fusedrnn.lm.distributed import ALONE, Processes, join_processes

EXACT = replace(RECIPE, dropout=0.0, epochs=1)
KINDS = [
    (EXACT, "fused"),
    (replace(EXACT, cell="gru", clip=0.05), "fused"),
    (replace(EXACT, backprop_length=20), "fused"),
    (replace(EXACT, length_deviation=2.0), "fused"),
    *((replace(EXACT, weight_drop=0.4), backend) for backend in ("fused", "nn")),
    (replace(EXACT, cell="rnn_relu", num_layers=1, shared_matrix=True, unroll="cell"), "fused"),
    (replace(EXACT, cell="rnn_tanh", tied=False, embedding_size=5, stateful=False, predict="last"), "nn"),
]


def make(recipe: Recipe, backend, processes: Processes) -> Trainer:
    torch.manual_seed(3)
    corpus = recipe.make_corpus()
    return Trainer(recipe.make_model(len(corpus.vocabulary), backend).double(), corpus, recipe, processes)


def close(what: str, mine, right) -> None:
    torch.testing.assert_close(mine, right, rtol=1e-11, atol=1e-13, msg=lambda text: f"{what}: {text}")


def compare(together: Trainer, alone: Trainer) -> None:
    """One epoch of both, step by step."""
    processes = together.processes
    for model in (together.model, alone.model):
        model.train()
    seen = False
    assert together.windows.seed == alone.windows.seed
    for step, batch in enumerate(alone.windows.of_epoch(0)):
        torch.manual_seed(step)  # masks of weights, which do not depend on the rows
        loss = together.step(*processes.part(batch, torch.device("cpu")))
        torch.manual_seed(step)
        close("loss", loss, alone.step(*batch))
        for (name, mine), right in zip(together.model.named_parameters(), alone.model.parameters(), strict=True):
            if right.requires_grad:
                close(f"gradient of {name}", mine.grad, right.grad)
                seen |= bool((mine.grad != 0).any())
            close(name, mine, right)
        for mine, right in zip(together.model.state or (), alone.model.state or (), strict=True):
            close("state", mine, right.chunk(processes.size, 1)[processes.rank])
    assert seen and together.model.state
    close("validation", together.validate(), alone.validate())


def gradients() -> None:
    processes = join_processes(torch.device("cpu"))
    assert processes.size == dist.get_world_size() > 1
    assert join_processes(torch.device("cpu")) == processes
    for recipe, backend in KINDS:
        compare(make(recipe, backend, processes), make(recipe, backend, ALONE))


def stop(folder: str, step: str) -> None:
    def step_or_end(self: Trainer, *batch: torch.Tensor) -> float:
        if self.steps == int(step):
            os._exit(7)
        return train_step(self, *batch)

    train_step = Trainer.step
    Trainer.step = step_or_end
    train(RECIPE, folder, seed=1, quiet=True, checkpoint_every=4)


def diverge(folder: str) -> None:
    def spoil_and_step(self: Trainer, *batch: torch.Tensor) -> float:
        if self.steps == 6 and self.processes.rank == 1:
            assert self.model.state is not None
            self.model.state[0][0, 0, 0] = float("nan")
        return train_step(self, *batch)

    train_step = Trainer.step
    Trainer.step = spoil_and_step
    train(RECIPE, folder, seed=1, quiet=True, checkpoint_every=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"gradients": gradients, "stop": stop, "diverge": diverge}[sys.argv[1]](*sys.argv[2:])
