"""The subcommands of ``fusedrnn``."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import click
import torch

import fusedrnn

from ..bench.command import bench
from .distributed import is_first_process
from .errors import LanguageModelError, ResumeWarning
from .generation import generate
from .metrics import Spread, Summary
from .model import Backend, LanguageModel
from .recipe import PREFIX_SUMS, Goal, Recipe
from .recipes import RECIPES, TEXT
from .report import draw, gather, markdown
from .run_folder import RunFolder, write_atomically
from .settings import override
from .text import Level, join_tokens
from .training import resume, train

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
        click.echo(f"{recipe.name}: {recipe.metric}, target {_bound(recipe)}")
        click.echo(f"  measured  {recipe.measured}")
        click.echo(f"  source    {recipe.source}")


def _bound(goal: Goal) -> str:
    if goal.target is None:
        return "none"
    return f"{'at most' if goal.lower_is_better else 'at least'} {goal.target:g}"


class _RecipeOrText(click.ParamType):
    """The name of a recipe, or the path of a text file that is trained with the default one."""

    name = "recipe"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Recipe:
        if value in RECIPES:
            return RECIPES[value]
        if Path(value).is_file():
            return dataclasses.replace(TEXT, name=Path(value).stem, data=str(Path(value).resolve()))
        self.fail(f"{value!r} is not a recipe ({', '.join(RECIPES)}), and there is no text file of this name")


@commands.command("train")
@click.argument("recipe", type=_RecipeOrText(), metavar="RECIPE|FILE", required=False)
@click.option("--backend", type=click.Choice(get_args(Backend)), default="fused", show_default=True)
@click.option("--seed", type=_SEED, help="[default: 0]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    help="Train with the seeds 0 to N-1, each into OUT/seed-K; mean and spread go into OUT/seeds.json.",
)
@click.option("--epochs", type=click.IntRange(1), help="In place of the recipe's number; one-cycle spans them.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field of the recipe, such as hidden_size=128; may be repeated.",
)
@click.option("--data", type=click.Path(exists=True, dir_okay=False), help="The text file to read.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="Keep the tokens of the text there, mapped into memory: for texts larger than memory. Built if need be.",
)
@click.option("--level", type=click.Choice(get_args(Level)), help="What a token of a text file is.")
@click.option("--encoding", help="Of the text file.")
@click.option("--lower", is_flag=True, help="Lower-case the text file.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder, which must be new or empty.  [default: runs/RECIPE-BACKEND-seedSEED, with --seeds "
    "runs/RECIPE-BACKEND-seeds]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's own choice]")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Of several processes each takes a GPU of its own.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, into OUT/tensorboard.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Write a checkpoint after so many steps too.  [default: only before the first and after each epoch]",
)
@click.option(
    "--resume",
    "resumed",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with the run in this folder, as it was started, from its last checkpoint; in place of RECIPE.",
)
@click.pass_context
def train_command(
    context: click.Context,
    recipe: Recipe | None,
    backend: Backend,
    seed: int | None,
    seeds: int | None,
    epochs: int | None,
    settings: tuple[str, ...],
    data: str | None,
    token_file: str | None,
    level: Level | None,
    encoding: str | None,
    lower: bool,
    out: Path | None,
    threads: int | None,
    device: str,
    quiet: bool,
    tensorboard: bool,
    checkpoint_every: int | None,
    resumed: Path | None,
) -> None:
    """Train RECIPE (see `fusedrnn recipes`), or a model on the text FILE, and write its run folder; or go on with a run
    that was stopped.

    \b
    In several processes, each of which reads rows of its own of every batch:
        torchrun --nproc-per-node=2 -m fusedrnn train ...
    """
    if resumed is not None:
        _refuse_all_but(context, "resumed", "threads", "quiet", "checkpoint_every")
        _resume(RunFolder(resumed), threads=threads, quiet=quiet, checkpoint_every=checkpoint_every)
        return
    if recipe is None:
        raise click.UsageError("name a RECIPE or a text FILE, or a run to go on with (--resume)")
    if seed is not None and seeds is not None:
        raise click.UsageError("--seed and --seeds exclude each other")
    if threads is not None:
        torch.set_num_threads(threads)
    options = {
        "epochs": epochs,
        "data": None if data is None else Path(data).resolve(),
        "level": level,
        "encoding": encoding,
        "lower": "true" if lower else None,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    recipe = override(recipe, [*given, *settings])
    run = partial(
        train,
        recipe,
        backend=backend,
        quiet=quiet,
        checkpoint_every=checkpoint_every,
        device=device,
        token_file=token_file,
        tensorboard=tensorboard,
    )
    if seeds is None:
        seed = seed or 0
        folder = RunFolder(out or Path("runs") / f"{recipe.name}-{backend}-seed{seed}")
        _say(_verdict(run(folder.path, seed=seed), folder))
        return
    parent = RunFolder.create(out or Path("runs") / f"{recipe.name}-{backend}-seeds", writes=is_first_process())
    values = []
    for seed in range(seeds):
        folder = RunFolder(parent.path / f"seed-{seed}")
        summary = run(folder.path, seed=seed)
        values.append(summary.value)
        _say(_verdict(summary, folder))
    spread = Spread.of(values)
    if parent.writes:
        goal = {"recipe": recipe.name, "metric": recipe.metric, "target": recipe.target, "backend": backend}
        content = goal | {"seeds": list(range(seeds))} | dataclasses.asdict(spread)
        write_atomically(parent.path / "seeds.json", (json.dumps(content, indent=2) + "\n").encode())
    _say(_told(recipe, spread))


def _resume(folder: RunFolder, **options: Any) -> None:
    with warnings.catch_warnings():
        _print_warnings_of_resume()
        summary = resume(folder.path, **options)
    _say(_verdict(summary, folder))


def _say(text: str) -> None:
    """Once, not by each of several processes."""
    if is_first_process():
        click.echo(text)


def _refuse_all_but(context: click.Context, *names: str) -> None:
    """What a run was started with holds to its end: an option that would be ignored is refused."""
    for parameter in context.command.params:
        assert parameter.name is not None
        given = context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in names:
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.name.upper()
            raise click.UsageError(f"--resume goes on with a run as it was started: leave out {shown}")


def _print_warnings_of_resume() -> None:
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, ResumeWarning):
            click.echo(str(message), err=True)
        else:
            others(message, category, *rest, **more)

    warnings.simplefilter("always", ResumeWarning)
    warnings.showwarning = show


def _verdict(summary: Summary, folder: RunFolder) -> str:
    return (
        f"{summary.recipe}: {summary.metric} {summary.value:.4f}{_against(summary, summary.value)} after "
        f"{summary.epochs} epochs in {summary.seconds:.1f} s, {summary.tokens_per_second:,.0f} tokens/s; "
        f"run folder {folder.path}, plot {folder.curves}"
    )


def _told(recipe: Recipe, spread: Spread) -> str:
    deviation = "" if spread.standard_deviation is None else f", standard deviation {spread.standard_deviation:.4f}"
    return (
        f"{recipe.name}: {recipe.metric} {spread.mean:.4f}{_against(recipe, spread.mean)}, the mean of the seeds 0 to "
        f"{len(spread.values) - 1} ({spread.lowest:.4f} to {spread.highest:.4f}{deviation})"
    )


def _against(goal: Goal, value: float) -> str:
    """What the figure, if there is one, says about a value."""
    if goal.target is None:
        return ""
    return f" (target {_bound(goal)}: {'reached' if goal.reached(value) else 'missed'})"


@commands.command("generate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to continue, cut into tokens as the training text was.")
@click.option("--length", type=click.IntRange(0), default=50, show_default=True, help="Tokens to write.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Below 1 likely tokens become likelier; 0 always takes the most likely one.",
)
@click.option("--top-k", type=click.IntRange(1), help="Draw among the K most likely tokens only.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw among the fewest most likely tokens that together have the probability P only.",
)
@click.option("--seed", type=_SEED, help="Makes the draws repeatable.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print each token as it comes.")
def generate_command(run: Path, prompt: str, length: int, stream: bool, **options: Any) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    checkpoint = RunFolder(run).load_checkpoint()
    if not isinstance(checkpoint.model, LanguageModel) or checkpoint.recipe.data == PREFIX_SUMS:
        raise click.UsageError(f"{run} holds a model of {checkpoint.recipe.data}, which predicts no next tokens")
    start = checkpoint.recipe.split_prompt(prompt)
    if not start:
        raise click.BadParameter(f"it is empty: give at least one {checkpoint.recipe.level}", param_hint="--prompt")
    tokens = generate(checkpoint.model, checkpoint.vocabulary, start, length, **options)
    pieces = join_tokens(chain(start, tokens), checkpoint.recipe.level)
    for piece in pieces if stream else ["".join(pieces)]:
        click.echo(piece, nl=False)
    click.echo()


@commands.command("report")
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PAGE.md",
    help="Write the page there and its picture beside it, as PAGE.png.  [default: print the page]",
)
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Put what many runs reached on one page of Markdown: values against their figures, seconds, fusedrnn against nn.*.

    A RUN is a run folder, or a folder with run folders in it. Seeds of one recipe become one line.
    """
    lines = gather(runs)
    if out is None:
        click.echo(markdown(lines), nl=False)
        return
    picture = out.with_suffix(".png")
    if picture == out:
        raise click.BadParameter("the page is Markdown: expected a name such as results.md", param_hint="--out")
    draw(lines, picture)
    write_atomically(out, markdown(lines, picture.name).encode())
    click.echo(f"{out} and {picture}: a line for each of {len(lines)} recipes")
