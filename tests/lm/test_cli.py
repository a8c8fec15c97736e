from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from fusedrnn.lm import RECIPES, LanguageModelError, RunFolder, cli
from fusedrnn.lm.commands import commands


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def test_recipes_names_target_figure_and_source_of_each() -> None:
    output = invoke("recipes").output
    for recipe in RECIPES.values():
        target = "target none" if recipe.target is None else f"{recipe.target:g}"
        for text in (recipe.name, target, recipe.measured, recipe.source):
            assert text and text in output
    assert "hn-gru: accuracy, target at least 0.95\n" in output
    assert "nietzsche-rnn: valid_loss, target at most 1.473\n" in output


def test_train_puts_the_metric_beside_its_target_and_says_where_the_run_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke("train", "hn-gru", "--epochs", 1, "--seed", 4, "--backend", "nn", "--threads", 1, "--out", folder)
    assert result.exit_code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["backend"], summary["seed"], summary["epochs"], summary["threads"]) == ("nn", 4, 1, 1)
    last_line = result.output.splitlines()[-1]
    assert f"accuracy {summary['value']:.4f} (target at least 0.95: missed)" in last_line
    assert f"run folder {folder}, plot {folder / 'curves.png'}" in last_line


def test_training_runs_on_the_threads_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is trained: a second thread is slow where other programs keep the cores busy.
    def report_threads(*args: object, **kwargs: object) -> None:
        raise LanguageModelError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr("fusedrnn.lm.commands.train", report_threads)
    assert invoke("train", "hn-gru", "--threads", 2).output == "Error: 2 threads\n"


def test_the_default_folder_is_named_after_recipe_backend_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("train", "hn-gru", "--epochs", 1, "--seed", 2).exit_code == 0
    assert (tmp_path / "runs/hn-gru-fused-seed2/summary.json").is_file()


SMALL = ("--epochs", 1, "--set", "hidden_size=8", "--set", "embedding_size=8", "--set", "num_layers=1", "--quiet")


def test_settings_change_the_recipe_that_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke("train", "hn-gru", *SMALL, "--set", "metric=valid_loss", "--set", "target=9", "--out", folder)
    assert result.exit_code == 0
    recipe = RunFolder(folder).load_checkpoint().recipe
    assert (recipe.hidden_size, recipe.embedding_size, recipe.num_layers, recipe.epochs) == (8, 8, 1, 1)
    assert f"valid_loss {json.loads((folder / 'summary.json').read_text())['value']:.4f}" in result.output
    assert "(target at most 9: reached)" in result.output


def test_several_seeds_get_a_folder_each_and_mean_and_spread(tmp_path: Path) -> None:
    result = invoke("train", "hn-gru", *SMALL, "--seeds", 3, "--out", tmp_path / "runs")
    assert result.exit_code == 0
    summaries = [json.loads((tmp_path / f"runs/seed-{k}/summary.json").read_text()) for k in range(3)]
    assert [summary["seed"] for summary in summaries] == [0, 1, 2]
    values = [summary["value"] for summary in summaries]
    assert len(set(values)) == 3
    assert result.output.splitlines()[-1] == (
        f"hn-gru: accuracy {statistics.mean(values):.4f} (target at least 0.95: missed), the mean of the seeds 0 to 2 "
        f"({min(values):.4f} to {max(values):.4f}, standard deviation {statistics.stdev(values):.4f})"
    )
    written = json.loads((tmp_path / "runs/seeds.json").read_text())
    assert (written["recipe"], written["metric"], written["target"]) == ("hn-gru", "accuracy", 0.95)
    assert (written["backend"], written["seeds"], written["values"]) == ("fused", [0, 1, 2], values)
    assert (written["lowest"], written["highest"]) == (min(values), max(values))
    mean, deviation = written["mean"], written["standard_deviation"]
    assert (mean, deviation) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    assert f"{mean:.4f} \u00b1 {deviation:.4f} (" in invoke("report", tmp_path / "runs").output
    alone = invoke("train", "hn-gru", *SMALL, "--seed", 2, "--out", tmp_path / "alone")
    assert f"accuracy {values[2]:.4f} " in alone.output
    again = invoke("train", "hn-gru", *SMALL, "--seeds", 3, "--out", tmp_path / "runs")
    assert (again.exit_code, "exists already" in again.output) == (1, True)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "songs.txt"
    path.write_bytes("\n".join(f"Zehn M\u00e4nner sangen {n} Lieder" for n in range(400)).encode("latin-1"))
    return path


def test_a_text_of_ones_own_is_trained_on_and_continued(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (*SMALL, "--set", "sequence_length=8", "--set", "batch_size=16", "--encoding", "latin-1")
    result = invoke("train", "songs.txt", *options)
    assert result.exit_code == 0
    assert result.output.startswith("songs: valid_loss ")
    assert "target" not in result.output
    folder = tmp_path / "runs/songs-fused-seed0"
    recipe = RunFolder(folder).load_checkpoint().recipe
    assert (recipe.data, recipe.level, recipe.lower) == (str(text_file), "char", False)
    written = invoke("generate", folder, "--prompt", "Zehn M\u00e4", "--length", 5, "--seed", 0).output
    assert written.startswith("Zehn M\u00e4")
    assert len(written.replace("<unk>", "?")) == len("Zehn M\u00e4") + 5 + 1
    unknown = invoke("generate", folder, "--prompt", "Zehn %")
    assert (unknown.exit_code, "'%'" in unknown.output) == (1, True)


def test_words_of_a_lower_cased_text(text_file: Path, tmp_path: Path) -> None:
    options = (*SMALL, "--set", "sequence_length=4", "--set", "batch_size=4", "--encoding", "latin-1")
    folder = tmp_path / "run"
    assert invoke("train", text_file, *options, "--level", "word", "--lower", "--out", folder).exit_code == 0
    checkpoint = RunFolder(folder).load_checkpoint()
    assert checkpoint.vocabulary.tokens == ("zehn", "m\u00e4nner", "sangen", "<unk>", "lieder", "\n")
    written = invoke("generate", folder, "--prompt", "Zehn M\u00e4nner", "--length", 3, "--temperature", 0).output
    assert written.startswith("zehn m\u00e4nner ")


def test_a_recipe_reads_the_text_that_it_is_given(text_file: Path, tmp_path: Path) -> None:
    result = invoke("train", "nietzsche-gru", *SMALL, "--data", text_file, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert RunFolder(tmp_path / "run").load_checkpoint().recipe.data == str(text_file)


def test_generate_continues_the_prompt_repeatably(run_folder: Path) -> None:
    arguments = ("generate", run_folder, "--prompt", "one  hundred .", "--length", 8, "--seed", 1, "--top-k", 3)
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("one hundred . ")
    assert len(result.output.split()) == 3 + 8
    assert invoke(*arguments).output == result.output


def test_top_k_of_one_takes_the_most_likely_word(run_folder: Path) -> None:
    arguments = ("generate", run_folder, "--prompt", "one hundred .", "--temperature")
    assert invoke(*arguments, 9, "--top-k", 1).output == invoke(*arguments, 0).output
    assert invoke(*arguments, 9, "--seed", 0).output != invoke(*arguments, 0).output


def test_a_narrow_nucleus_takes_the_most_likely_word(run_folder: Path) -> None:
    arguments = ("generate", run_folder, "--prompt", "one hundred .", "--seed", 0)
    assert invoke(*arguments, "--top-p", 1e-6).output == invoke(*arguments, "--temperature", 0).output
    assert invoke(*arguments, "--top-p", 0.9).output != invoke(*arguments, "--temperature", 0).output


def test_tokens_are_printed_as_they_come_or_all_at_once(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_the_third(*arguments: object, **options: object) -> Iterator[str]:
        yield from ("one", "two")
        raise LanguageModelError("no more")

    arguments = ("generate", run_folder, "--prompt", "one .", "--seed", 0)
    streamed = invoke(*arguments, "--stream")
    assert streamed.output == invoke(*arguments).output == invoke(*arguments, "--no-stream").output
    monkeypatch.setattr("fusedrnn.lm.commands.generate", fail_at_the_third)
    assert invoke(*arguments).stdout == "one . one two"
    assert invoke(*arguments, "--no-stream").stdout == ""


def test_a_reader_that_goes_away_gets_no_message(run_folder: Path) -> None:
    command = [sys.executable, "-u", "-m", "fusedrnn.lm.cli", "generate", str(run_folder), "--prompt", "one ."]
    with subprocess.Popen([*command, "--length", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(5) == b"one ."
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "hn-gru", "--out", "{run}"), 1, "{run} holds a run already: go on with it (--resume {run}), choose"),
        (("train",), 2, "name a RECIPE or a text FILE, or a run to go on with (--resume)"),
        (("train", "--resume", "{run}/nowhere"), 1, "{run}/nowhere is not a run folder: it holds no checkpoint.pt"),
        (("train", "hn-gru", "--resume", "{run}"), 2, "goes on with a run as it was started: leave out RECIPE"),
        (("train", "--resume", "{run}", "--backend", "nn"), 2, "as it was started: leave out --backend"),
        (("train", "--resume", "{run}", "--seed", "0"), 2, "as it was started: leave out --seed"),
        (("train", "hn-gru", "--checkpoint-every", "0"), 2, "0 is not in the range"),
        (("generate", "{run}", "--prompt", "one fish"), 1, "'fish'"),
        (("generate", "{run}/nowhere", "--prompt", "one"), 1, "is not a run folder"),
        (("generate", "{run}", "--prompt", "  "), 2, "empty: give at least one word"),
        (("generate", "{run}", "--prompt", "one", "--top-p", "0"), 2, "0 is not in the range 0<x<=1"),
        (("train", "hn-gru", "--seed", "1", "--seeds", "2"), 2, "--seed and --seeds exclude each other"),
        (("train", "hn-gru", "--set", "hiden_size=3"), 1, "no field 'hiden_size': expected one of ar, backprop_"),
        (("train", "hn-gru", "--set", "epochs=1", "--epochs", "2"), 1, "epochs is set twice"),
        (("train", "hn-gru", "--set", "tied=true", "--set", "hidden_size=3"), 1, "embedding_size and hidden_size must"),
        (("train", "hn-gru", "--level", "char"), 1, "level: the data human-numbers has no use for it"),
        (("train", "hn-gru", "--data", "{run}/none.txt"), 2, "none.txt' does not exist"),
        (("train", "{run}/curves.png"), 1, "curves.png is not utf-8: byte 0x89 at offset 0 does not fit"),
        (("train", "{run}/metrics.jsonl", "--set", "batch_size=9999"), 1, "too short"),
        (("train", "hn-gru", "--out", "/proc/run"), 1, "/proc/run"),
        (("train", "hn-gpt"), 2, "'hn-gpt' is not a recipe (hn-literal, hn-loop"),
        (("train", "hn-gru", "--backend", "cudnn"), 2, "'cudnn' is not one of"),
    ],
)
def test_mistakes_get_a_sentence_and_a_status(
    arguments: tuple[str, ...], code: int, message: str, run_folder: Path
) -> None:
    result = invoke(*(argument.format(run=run_folder) for argument in arguments))
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    assert message.format(run=run_folder) in " ".join(result.output.split())


def test_runs_as_a_program_without_a_progress_bar_in_a_pipe(run_folder: Path) -> None:
    command = [sys.executable, "-m", "fusedrnn.lm.cli", "generate", str(run_folder), "--prompt", "one ."]
    result = subprocess.run([*command, "--temperature", "0"], capture_output=True, text=True, check=True)
    assert result.stdout == invoke(*command[3:], "--temperature", 0).output
    assert result.stderr == ""


@pytest.mark.parametrize("library", ["click", "inflect", "matplotlib", "tqdm"])
def test_a_missing_library_is_named_with_the_way_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == f"fusedrnn: the command line needs {library}: pip install 'fusedrnn[lm]'"


def test_the_package_is_imported_without_the_libraries_of_the_command_line() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['click', 'inflect', 'matplotlib', 'tqdm']))"
    script = f"{block}; import fusedrnn.lm; print(*fusedrnn.lm.RECIPES)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == list(RECIPES)
