"""The subcommands of ``fusedrnn``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import click
import torch

import fusedrnn

from ..bench.command import bench
from .errors import LanguageModelError
from .generation import generate
from .model import Backend
from .recipes import RECIPES
from .run_folder import RunFolder
from .training import Summary, train

_SEED = click.IntRange(0, 2**63 - 1)


class _Commands(click.Group):
    """Tells the user of an error that is no fault of the program in a sentence, not in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except (LanguageModelError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fusedrnn.__version__)
def commands() -> None:
    """Train recurrent language models with fused kernels, write with them, and measure the kernels."""


commands.add_command(bench)


@commands.command("recipes")
def list_recipes() -> None:
    """List the recipes: what each should reach, what it did reach, where it comes from."""
    for recipe in RECIPES.values():
        click.echo(f"{recipe.name}: {recipe.metric}, target {recipe.target:g}")
        click.echo(f"  measured  {recipe.measured}")
        click.echo(f"  source    {recipe.source}")


@commands.command("train")
@click.argument("recipe", type=click.Choice(sorted(RECIPES)))
@click.option("--backend", type=click.Choice(get_args(Backend)), default="fused", show_default=True)
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="In place of the recipe's number; the schedule spans them.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder, which must be new or empty.  [default: runs/RECIPE-BACKEND-seedSEED]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's own choice]")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_command(
    recipe: str, backend: Backend, seed: int, epochs: int | None, out: Path | None, threads: int | None, quiet: bool
) -> None:
    """Train RECIPE (see `fusedrnn recipes`) and write its run folder."""
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = RECIPES[recipe]
    if epochs is not None:
        chosen = dataclasses.replace(chosen, epochs=epochs)
    folder = RunFolder(out or Path("runs") / f"{recipe}-{backend}-seed{seed}")
    click.echo(_verdict(train(chosen, folder.path, backend=backend, seed=seed, quiet=quiet), folder))


def _verdict(summary: Summary, folder: RunFolder) -> str:
    return (
        f"{summary.recipe}: {summary.metric} {summary.value:.4f} (target {summary.target:g}) after {summary.epochs} "
        f"epochs in {summary.seconds:.1f} s, {summary.tokens_per_second:,.0f} tokens/s; "
        f"run folder {folder.path}, plot {folder.curves}"
    )


@commands.command("generate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to continue: words separated by blanks.")
@click.option("--length", type=click.IntRange(0), default=50, show_default=True, help="Tokens to write.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Below 1 likely words become likelier; 0 always takes the most likely one.",
)
@click.option("--top-k", type=click.IntRange(1), help="Draw among the K most likely words only.")
@click.option("--seed", type=_SEED, help="Makes the draws repeatable.")
def generate_command(
    run: Path, prompt: str, length: int, temperature: float, top_k: int | None, seed: int | None
) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    words = prompt.split()
    if not words:
        raise click.BadParameter("it is empty: give at least one word", param_hint="--prompt")
    checkpoint = RunFolder(run).load_checkpoint()
    tokens = generate(
        checkpoint.model, checkpoint.vocabulary, words, length, temperature=temperature, top_k=top_k, seed=seed
    )
    click.echo(" ".join(words), nl=False)
    for token in tokens:
        click.echo(f" {token}", nl=False)
    click.echo()
