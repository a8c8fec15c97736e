from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from fusedrnn.lm import RECIPES, LanguageModelError, cli
from fusedrnn.lm.commands import commands


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def test_recipes_names_target_figure_and_source_of_each() -> None:
    output = invoke("recipes").output
    for recipe in RECIPES.values():
        for text in (recipe.name, f"{recipe.target:g}", recipe.measured, recipe.source):
            assert text and text in output


def test_train_puts_the_metric_beside_its_target_and_says_where_the_run_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke("train", "hn-gru", "--epochs", 1, "--seed", 4, "--backend", "nn", "--threads", 1, "--out", folder)
    assert result.exit_code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["backend"], summary["seed"], summary["epochs"], summary["threads"]) == ("nn", 4, 1, 1)
    last_line = result.output.splitlines()[-1]
    assert f"accuracy {summary['value']:.4f} (target 0.95)" in last_line
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
        (("train", "hn-gru", "--out", "{run}"), 1, "{run} exists already: choose another folder (--out), or remove it"),
        (("generate", "{run}", "--prompt", "one fish"), 1, "'fish'"),
        (("generate", "{run}/nowhere", "--prompt", "one"), 1, "is not a run folder"),
        (("generate", "{run}", "--prompt", "  "), 2, "empty: give at least one word"),
        (("train", "hn-gru", "--out", "/proc/run"), 1, "/proc/run"),
        (("train", "hn-gpt"), 2, "'hn-gpt' is not"),
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
