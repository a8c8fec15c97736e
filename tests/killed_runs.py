"""A program for lm/test_resume.py: runs that are killed and resumed until they end, each in a fork of this process.

    killed_runs.py everywhere | anytime | resume FOLDER

`everywhere` kills a run before each call that brings something to the disk, one run for each of these moments;
`anytime` kills runs after random times, again and again. Fails unless every run ends with the bits of one that was not
killed, and prints how many kills there were. `resume` only goes on with the run in the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fusedrnn.lm import RECIPES, Recipe, ResumeWarning, RunFolder, RunFolderError, resume, train
from fusedrnn.lm.data import SOURCES

SOURCES["tiny"] = lambda: random.Random(0).choices("abcdefgh", k=400)

# 13 training batches and 3 validation batches.
RECIPE = dataclasses.replace(
    RECIPES["hn-gru"],
    **{"data": "tiny", "sequence_length": 6, "batch_size": 4, "cell": "lstm", "epochs": 3},
    **{"embedding_size": 16, "hidden_size": 16, "recurrent_init": "uniform"},
)

TIMES = ("seconds", "tokens_per_second")


def bits(value: object) -> object:
    """All of a nest of dicts and lists but the times, tensors to the last bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def result(path: Path) -> object:
    """All that a run left behind but times and picture."""
    folder = RunFolder(path)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    state = folder.load_checkpoint().state
    assert lines == state["history"]
    assert sorted(path.iterdir()) == sorted([folder.checkpoint, folder.curves, folder.metrics, folder.summary])
    return bits([lines, json.loads(folder.summary.read_text()), state])


def fork(run: Callable[[], object], kill_after: float | None = None) -> bool:
    """Runs something in a fork; says whether it came to its end, and not to a violent one."""
    sys.stdout.flush()
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(started, b".")
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(started)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def start_or_resume(path: Path, recipe: Recipe, every: int | None) -> None:
    try:
        resume(path, quiet=True)
    except RunFolderError as error:
        if "it holds no checkpoint" not in str(error):
            raise
        train(recipe, path, seed=1, quiet=True, checkpoint_every=every)


def deadly(moment: int) -> None:
    """Kills this process at the n-th of its calls that bring something to the disk."""
    moments = 0

    def pass_moment() -> None:
        nonlocal moments
        moments += 1
        if moments == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def framed(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            pass_moment()
            return function(*arguments)

        return call

    for name in ("mkdir", "fsync", "replace"):
        setattr(os, name, framed(getattr(os, name)))


def everywhere(folder: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=2, sequence_length=12)
    every = 4
    fork(lambda: train(recipe, folder / "whole", seed=1, quiet=True))
    expected = result(folder / "whole")
    moment, ended = 0, False
    while not ended:
        moment += 1
        path = folder / str(moment)

        def run(path: Path = path, moment: int = moment) -> None:
            deadly(moment)
            start_or_resume(path, recipe, every)

        ended = fork(run)
        fork(lambda path=path: start_or_resume(path, recipe, every))
        assert result(path) == expected, moment
    print(f"{moment - 1} kills")


def anytime(folder: Path) -> None:
    draw = random.Random(0)
    kills = 0
    random_lengths = dataclasses.replace(RECIPE, length_deviation=2.0, length_halved=0.3)
    back = dataclasses.replace(RECIPE, backprop_length=20)
    for every, recipe in ((1, RECIPE), (5, random_lengths), (4, back), (None, RECIPE)):
        whole = folder / f"whole-{every}"
        fork(partial(train, recipe, whole, seed=1, quiet=True))
        expected = result(whole)
        run = partial(start_or_resume, folder / f"killed-{every}", recipe, every)
        # Ever longer, so that a run whose checkpoints are far apart ends too.
        for attempt in range(1000):
            if fork(run, draw.uniform(0, 0.02 * (attempt + 1))):
                break
            kills += 1
        assert result(folder / f"killed-{every}") == expected
    print(f"{kills} kills")


def resume_quietly(folder: Path) -> None:
    resume(folder, quiet=True)


def main(what: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ResumeWarning)
    # What the first optimizer step imports, so that each fork need not. Nothing here runs backward, which forks forbid.
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.AdamW([parameter], fused=True).step()
    import tqdm  # noqa: F401

    RunFolder.plot = lambda self, *_: self.curves.touch()  # takes longer than all the rest
    {"everywhere": everywhere, "anytime": anytime, "resume": resume_quietly}[what](Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
