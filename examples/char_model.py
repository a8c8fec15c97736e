"""Learns to write like a text of yours, character by character, and writes on.

python examples/char_model.py my.txt --prompt "Once upon" --out runs/mine

Without a text it learns from this project's README. Needs `pip install 'fusedrnn[lm]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from fusedrnn.lm import TEXT, RunFolder, generate, train

parser = argparse.ArgumentParser(description="Train a character model on a text, and let it write.")
parser.add_argument("text", nargs="?", type=Path, default=Path(__file__).parents[1] / "README.md")
parser.add_argument("--prompt", default="The ")
parser.add_argument("--length", type=int, default=300, help="characters to write")
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--out", type=Path, help="the run folder, which must be new  [default: a temporary one]")
options = parser.parse_args()

# A recipe is data: take the one for texts and say what differs.
recipe = dataclasses.replace(
    TEXT,
    name=options.text.stem,
    data=str(options.text),
    sequence_length=32,
    batch_size=8,
    hidden_size=128,
    epochs=options.epochs,
    min_freq=2,
)
out = options.out or Path(tempfile.mkdtemp()) / "run"
summary = train(recipe, out, seed=0)
print(f"{summary.value:.3f} nats per character after {summary.epochs} epochs, {summary.seconds:.0f} s, in {out}\n")

checkpoint = RunFolder(out).load_checkpoint()
prompt = recipe.split_prompt(options.prompt)
print(options.prompt, end="")
for character in generate(
    checkpoint.model, checkpoint.vocabulary, prompt, options.length, temperature=0.7, top_p=0.95, seed=0
):
    print(character, end="", flush=True)
print()
