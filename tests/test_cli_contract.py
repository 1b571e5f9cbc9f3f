"""The command line: what it prints, what it ends with, and what it does not import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.config.keys import READS
from llmforge.errors import GateError, RunError

PROBE = """
import sys
from llmforge import cli
code = cli.main(sys.argv[1:])
heavy = sorted({"torch", "transformers", "datasets", "peft", "accelerate"} & set(sys.modules))
print("heavy:", *heavy, file=sys.stderr)
sys.exit(code)
"""


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.fixture
def tiny_recipe(tmp_path, tiny_tokenizer_dir) -> Path:
    rows = [f'{{"instruction": "Which floor? {i}", "input": "", "output": "Floor {i}."}}\n' for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "r.yaml").write_text(
        f"model_name_or_path: {tiny_tokenizer_dir}\ntemplate: chatml\ndataset: rows.jsonl\noutput_dir: out\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["version"], 0),
        (["train", "--help"], 0),
        (["api", "--help"], 0),
        (["recipe", "show", "lora_rank=4"], 0),
        (["recipe", "explain", "stage"], 0),
        (["recipe", "schema"], 0),
        (["recipe", "check", "r.yaml"], 0),
        (["recipe", "check", "r.yaml", "stage=stf"], 2),
        (["tarin", "r.yaml"], 2),
        (["recipe", "shwo"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_torch_stays_away_and_the_exit_code_is_right(words, code, tiny_recipe):
    done = run(*words, cwd=tiny_recipe)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("heavy:\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_help_fits_one_screen_and_has_a_command_to_copy_for_each_mode(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 32
    assert max(map(len, text.splitlines())) <= 110
    for name in cli.COMMANDS:
        assert f"$ forge-cli {name} " in text
    assert cli.main([]) == 0
    assert capsys.readouterr().out == text


def test_every_command_is_there():
    from importlib.util import find_spec

    for command in cli.COMMANDS.values():
        assert find_spec(command.function.partition(":")[0]), command.function
    assert {name for name, command in cli.COMMANDS.items() if command.reads_recipe} == set(READS)


@pytest.mark.parametrize("name", sorted(READS))
def test_help_of_a_command_is_the_same_behind_help_and_before_it(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"forge-cli {name} RECIPE")
    assert cli.main(["help", name]) == 0
    assert capsys.readouterr().out == text


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["tarin"]) == 2
    assert capsys.readouterr().err.startswith("forge-cli: 'tarin' is no command. Did you mean 'train'?")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunError("step 3: the disk is full"), 1, "forge-cli: step 3: the disk is full\n"),
        (GateError("too many rows were rejected"), 3, "forge-cli: too many rows were rejected\n"),
        (KeyboardInterrupt(), 130, "forge-cli: interrupted\n"),
    ],
    ids=["RunError", "GateError", "interrupt"],
)
def test_errors_end_with_their_code_and_no_traceback(error, code, said, monkeypatch, capsys):
    def fails(words):
        raise error

    monkeypatch.setitem(sys.modules, "failing_command", type("Module", (), {"main": fails}))
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.Command("failing_command:main", "", "", reads_recipe=False))
    assert cli.main(["fail"]) == code
    assert capsys.readouterr().err == said


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "llmforge.cli", "recipe", "schema"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_the_package_s(capsys):
    from llmforge import __version__

    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"llmforge {__version__}\n"


def test_streams_that_the_caller_closed_are_no_error(tiny_recipe):
    command = f"{sys.executable} -m llmforge.cli recipe show r.yaml >&- <&-"
    done = subprocess.run(["bash", "-c", command], cwd=tiny_recipe, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_or_an_unknown_kind_of_file_has_no_tokens_to_show(
    tiny_recipe, tiny_tokenizer_dir, capsys, monkeypatch
):
    monkeypatch.chdir(tiny_recipe)
    (tiny_recipe / "chats.docx").write_text("x")
    for name, said in ((".", "no file '.'"), ("chats.docx", "files of this kind are not read")):
        assert cli.main(["data", "tokens", "--model", str(tiny_tokenizer_dir), "--template", "chatml", name]) == 2
        assert said in capsys.readouterr().err


def test_a_key_without_a_value_is_told_from_a_missing_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "learning_rate"]) == 2
    assert "write learning_rate=VALUE" in capsys.readouterr().err
