from __future__ import annotations

import json
import shlex
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fusedrnn.lm import RECIPES, TEXT, Corpus, Recipe, RunFolder, RunFolderError, Settings, Summary, Trainer, train
from fusedrnn.lm.commands import commands
from fusedrnn.lm.report import draw, gather, markdown

SETTINGS = Settings("fused", 0, None, threads=1, torch="2.13.0", fusedrnn="0.1.0", isa="avx2")
GRU = replace(RECIPES["hn-gru"], embedding_size=8, hidden_size=8, num_layers=1, epochs=1)
CHANGES = ["epochs=1", "embedding_size=8", "hidden_size=8", "num_layers=1"]


@pytest.fixture
def put(tmp_path: Path, small_corpus: Corpus):
    """Writes a run folder as a run would, with figures of the test's own."""

    def put(name: str, value: float = 0.9, seconds: float = 10.0, recipe: Recipe = GRU, **settings) -> RunFolder:
        now = replace(SETTINGS, **settings)
        trainer = Trainer(recipe.make_model(len(small_corpus.vocabulary)), small_corpus, recipe)
        *_, last = trainer.epochs()
        folder = RunFolder.create(tmp_path / name)
        folder.save_checkpoint(trainer.state_dict(), now)
        summary = Summary(
            *(recipe.name, recipe.metric, value, recipe.target, seconds, last.tokens_per_second),
            *(now.backend, now.seed, recipe.epochs, now.threads, now.torch, now.fusedrnn),
        )
        folder.write_summary(asdict(summary))
        return folder

    return put


def rows(page: str) -> list[list[str]]:
    """The cells of each table, the line of dashes left out."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def commands_of(page: str) -> list[str]:
    return [line.strip() for line in page.splitlines() if line.startswith("    fusedrnn")]


def test_seeds_of_both_backends_are_one_line_with_mean_spread_and_ratio(put, tmp_path: Path) -> None:
    fused, nn = [0.9, 0.96, 0.93], [0.91, 0.95]
    for seed, value in enumerate(fused):
        put(f"fused/seed-{seed}", value, seconds=10 + seed, seed=seed)
    for seed, value in enumerate(nn):
        put(f"nn/seed-{seed}", value, seconds=(20, 33)[seed], seed=seed, backend="nn")
    header, cells = rows(markdown(gather([tmp_path])))
    got = dict(zip(header, cells, strict=True))
    assert got == {
        "recipe": "hn-gru, embedding_size=8, hidden_size=8, num_layers=1, epochs=1",
        "metric": "accuracy",
        "figure": "0.95",
        "fusedrnn": f"0.9300 ± {statistics.stdev(fused):.4f} (0.9000 to 0.9600), 3 seeds, missed",
        "nn.*": f"0.9300 ± {statistics.stdev(nn):.4f} (0.9100 to 0.9500), 2 seeds, missed",
        "seconds, fusedrnn": "11.0",
        "seconds, nn.*": "26.5",
        "times faster": "2.50 (2.00 to 3.00)",
    }


def test_seconds_of_different_seeds_give_no_ratio(put, tmp_path: Path) -> None:
    put("a", seed=0)
    put("b", seed=1, backend="nn")
    header, cells = rows(markdown(gather([tmp_path])))
    assert "times faster" not in header
    assert cells[3:] == ["0.9000, 1 seed, missed", "0.9000, 1 seed, missed", "10.0", "10.0"]


def test_recipes_come_in_their_own_order_and_machines_apart(put, tmp_path: Path) -> None:
    for index, name in enumerate(["mine", "hn-gru", "hn-loop"]):
        put(f"{index}", recipe=replace(GRU, name=name))
    put("3", recipe=replace(GRU, name="hn-loop"), threads=2)
    page = markdown(gather([tmp_path]))
    assert [cells[0].split(",")[0] for cells in rows(page)] == [
        *("recipe", "hn-loop", "hn-gru", "mine"),
        *("recipe", "hn-loop"),
    ]
    assert [line for line in page.splitlines() if line.startswith("## ")][:2] == [
        "## 1 CPU thread, torch 2.13.0, fusedrnn 0.1.0, kernels for avx2",
        "## 2 CPU threads, torch 2.13.0, fusedrnn 0.1.0, kernels for avx2",
    ]
    assert page.count(f"- hn-gru: {GRU.source}") == 1


def test_a_figure_and_what_it_says_of_a_loss(put, tmp_path: Path) -> None:
    for index, (metric, target) in enumerate([("valid_loss", 1.5), ("valid_loss", 1.2), ("valid_loss", None)]):
        put(str(index), 1.3, recipe=replace(GRU, name=f"r{index}", metric=metric, target=target))
    _, *lines = rows(markdown(gather([tmp_path])))
    assert [cells[1:4] for cells in lines] == [
        ["valid_loss", "1.5", "1.3000, 1 seed"],
        ["valid_loss", "1.2", "1.3000, 1 seed, missed"],
        ["valid_loss", "", "1.3000, 1 seed"],
    ]


@pytest.mark.parametrize("recipe", ["hn-gru", "own text", "own recipe"])
def test_the_commands_train_the_same_recipe_again(
    recipe: str, put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my songs.txt").write_text("some text\n" * 400)
    own_text = replace(TEXT, name="my songs", data=str(tmp_path / "my songs.txt"), level="word", clip=None)
    given = {"hn-gru": GRU, "own text": own_text, "own recipe": replace(GRU, name="mine", momentum=(0.9, 0.8))}[recipe]
    for seed in (0, 1, 2):
        put(f"runs/fused-{seed}", recipe=given, seed=seed)
    for seed in (0, 4):
        put(f"runs/nn-{seed}", recipe=given, seed=seed, backend="nn")
    found = commands_of(markdown(gather([tmp_path / "runs"])))
    assert [line.split(" --threads 1 ")[1] for line in found] == [
        "--seeds 3",
        "--backend nn --seed 0",
        "--backend nn --seed 4",
    ]
    again: list[Recipe] = []
    monkeypatch.setattr("fusedrnn.lm.commands.train", lambda recipe, *_, **__: again.append(recipe) or 1 / 0)
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(commands, shlex.split(found[0])[1:])
    assert [replace(recipe, source="", measured="") for recipe in again] == [replace(given, source="", measured="")]


def test_runs_of_several_processes_are_a_machine_of_their_own(put, tmp_path: Path) -> None:
    put("one")
    put("two", processes=2, device="cuda")
    page = markdown(gather([tmp_path]))
    assert "## 2 processes, each cuda, 1 CPU thread, torch 2.13.0, fusedrnn 0.1.0, kernels for avx2" in page
    start = "torchrun --nproc-per-node=2 -m fusedrnn train hn-gru "
    (command,) = [line.strip() for line in page.splitlines() if line.startswith("    torchrun")]
    assert command.startswith(start)
    assert command.endswith(" --threads 1 --device cuda --seed 0")


def test_the_page_names_no_folder_of_the_machine(put, tmp_path: Path) -> None:
    put("a", recipe=replace(TEXT, name="text", data=str(tmp_path / "text.txt")))
    put("b", recipe=replace(RECIPES["nietzsche-gru"], data=str(tmp_path / "nietzsche.txt")))
    page = markdown(gather([tmp_path]))
    assert str(tmp_path) not in page
    assert "fusedrnn train text.txt --threads 1 --seed 0" in commands_of(page)
    assert "fusedrnn train nietzsche-gru --threads 1 --seed 0" in commands_of(page)


def test_the_same_runs_give_the_same_bytes_in_any_order(put, tmp_path: Path) -> None:
    folders = [
        put(f"{b}-{seed}", 0.9 + seed / 50, seed=seed, backend=b).path for b in ("nn", "fused") for seed in (0, 1)
    ]
    first, second = gather(folders), gather([*reversed(folders), folders[0]])
    assert markdown(first) == markdown(second)
    for name, lines in (("a.png", first), ("b.png", second)):
        draw(lines, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_real_runs_with_several_seeds_and_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(commands, [str(argument) for argument in arguments])

    monkeypatch.chdir(tmp_path)
    settings = [word for change in CHANGES for word in ("--set", change)]
    for backend in ("fused", "nn"):
        assert call("train", "hn-gru", *settings, "--seeds", 2, "--backend", backend).exit_code == 0
    page = call("report", "runs").output
    (_, cells) = rows(page)
    values = [json.loads(Path(f"runs/hn-gru-fused-seeds/seed-{k}/summary.json").read_text())["value"] for k in (0, 1)]
    assert cells[3].startswith(f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} (")
    written = call("report", "runs/hn-gru-fused-seeds", "runs/hn-gru-nn-seeds", "--out", "results.md")
    assert written.output == "results.md and results.png: a line for each of 1 recipes\n"
    picture = "\n![Values of every seed, targets, and times of nn.* over those of fusedrnn](results.png)\n"
    assert Path("results.md").read_text().replace(picture, "") == page
    assert Path("results.png").read_bytes().startswith(b"\x89PNG")


def damage_summary(folder: RunFolder) -> None:
    folder.summary.write_text('{"recipe": "hn-gru"}')


def swap_summary(folder: RunFolder) -> None:
    folder.write_summary(json.loads(folder.summary.read_text()) | {"recipe": "hn-awd"})


def stop_early(folder: RunFolder) -> None:
    folder.summary.unlink()


def damage_checkpoint(folder: RunFolder) -> None:
    folder.checkpoint.write_bytes(b"?")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_summary, "summary.json is damaged, or no summary of this program"),
        (swap_summary, "summary.json is not the summary of .*checkpoint.pt"),
        (
            stop_early,
            "is not finished, 1 of 1 epochs are done: go on with it .fusedrnn train --resume .*run., or leave",
        ),
        (damage_checkpoint, "checkpoint.pt is damaged, or no checkpoint"),
        (lambda folder: folder.checkpoint.unlink(), "it holds no checkpoint.pt"),
        (lambda folder: shutil.copytree(folder.path, folder.path.parent / "copy"), "copy and .*run hold the same run"),
        (lambda folder: shutil.rmtree(folder.path), "holds no run: expected a folder that `fusedrnn train` wrote"),
        (lambda folder: shutil.rmtree(folder.path.parent), "is no folder"),
    ],
)
def test_folders_that_tell_nothing_are_named(change, message: str, put, tmp_path: Path) -> None:
    change(put("runs/run"))
    with pytest.raises(RunFolderError, match=message):
        gather([tmp_path / "runs"])


def test_a_run_that_was_stopped_says_how_far_it_came(small_recipe: Recipe, tmp_path: Path) -> None:
    def stop(self: RunFolder, history) -> None:
        if len(list(history)) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_metrics", stop)
        train(small_recipe, tmp_path / "run", quiet=True)
    with pytest.raises(RunFolderError, match="is not finished, 1 of 2 epochs are done"):
        gather([tmp_path])


def test_a_page_that_is_no_markdown_is_refused(put, tmp_path: Path) -> None:
    put("run")
    result = CliRunner().invoke(commands, ["report", str(tmp_path), "--out", str(tmp_path / "page.png")])
    assert (result.exit_code, "expected a name such as results.md" in result.output) == (2, True)
