"""`recipe check` of a recipe of `kind: dataset`: all that can be seen without asking a teacher or writing a file."""

from pathlib import Path

import pytest

from llmforge.cli import main
from llmforge.datagen.check import check_dataset

pytest.importorskip("jsonschema")
REPO = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (REPO / "recipes/data").glob("*.yaml"))
LINE = "recipes/data/report_line.yaml"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))  # no model is fetched there


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_we_ship_have_no_problem_and_nothing_is_written(name, tmp_path, capsys):
    assert main(["recipe", "check", f"recipes/data/{name}", f"store.dir={tmp_path / 'work'}"]) == 0
    assert "the recipe can run" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


def test_quotas_are_counted_and_an_unfetched_teacher_is_named():
    result = check_dataset([LINE])
    assert "slots.symbol: 12 values, 2 rows of each" in result.fine
    assert any(line.startswith("teacher: ") and "is not fetched yet" in line for line in result.not_checked)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("checks={x: out.report == 3}", "checks.x: row 0 wants report == 3, and output_schema does not allow it"),
        ("teacher.key_env=NO_SUCH_KEY", "NO_SUCH_KEY is neither in the environment nor in a .env file"),
        ("slots.symbol.table=gone.csv", "no such key"),
        ("seeed=3", "seeed: no such key. Did you mean 'seed'?"),
    ],
)
def test_what_is_wrong_ends_with_2_and_its_place(word, message, capsys):
    assert main(["recipe", "check", LINE, word]) == 2
    said = capsys.readouterr().err
    assert f"{LINE} cannot run:" in said
    assert message in said


def test_a_conversion_is_tried_without_writing(tmp_path, capsys):
    table = "convert.file=data/legal_faq.csv"
    words = ["recipe", "check", "recipes/data/legal_faq.yaml", table, f"convert.out={tmp_path / 'out'}"]
    assert main(words) == 0
    assert "convert: 60 of 128 rows can be used" in capsys.readouterr().out
    assert main([*words, "convert.group=titel"]) == 2
    assert "no column 'titel'. Did you mean 'title'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
