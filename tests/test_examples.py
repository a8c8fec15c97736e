"""The examples, run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180, env=environment).stdout


@pytest.mark.slow
def test_the_forecast_is_better_than_what_needs_no_training() -> None:
    errors = dict(re.findall(r"^  (.+): (\d\.\d+)$", run("forecast.py"), re.MULTILINE))
    assert float(errors["GRU"]) < 0.8 * float(errors["same hour last week"]) < float(errors["same hour yesterday"])


def test_a_character_model_learns_a_text_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "song.txt"
    text.write_text("".join(f"{n} green bottles hanging on the wall\n" for n in range(300)))
    output = run(
        "char_model.py", text, "--prompt", "12 green", "--epochs", 15, "--length", 60, "--out", tmp_path / "run"
    )
    loss, written = re.fullmatch(r"(\d\.\d+) nats per character .*?\n\n(.*)\n", output, re.DOTALL).groups()
    assert float(loss) < 0.5
    assert written.startswith("12 green bottles hanging on the wall\n")
    assert len(written) == len("12 green") + 60
    assert (tmp_path / "run/summary.json").is_file()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_agent_learns_to_remember(cell: str) -> None:
    output = run("recurrent_ppo.py", "--cell", cell, "--updates", 100)
    before, after = re.findall(r"^opens the right door (?:before|after) training: (\d\.\d+)", output, re.MULTILINE)
    assert float(before) < 0.4 and float(after) > 0.95
    assert float(re.findall(r"gradients differ by (\S+) of", output)[0]) < 1e-4
