"""The recipe that makes data, as form and text, and how far its rows are."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from projects import SUMS

from llmforge.datagen.generate import generate
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.making import (
    FIELDS,
    Draft,
    Progress,
    fields_of,
    folder_of,
    new_draft,
    open_draft,
    read_recipe,
    save_draft,
    values_of,
    with_field,
)
from llmforge.webui.making_lines import LINES


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return Board(tmp_path)


def test_a_new_recipe_can_run_once_its_teacher_is_named(board: Board) -> None:
    draft = new_draft(board, "my_data")
    save_draft(board, draft)
    with pytest.raises(RecipeError, match=r"teacher\.model: missing"):
        read_recipe(board, draft.path)
    text = with_field(draft.text, "teacher.model", "some-model")
    save_draft(board, Draft(draft.path, text, draft.prompt, draft.schema))
    recipe, rows = read_recipe(board, draft.path)
    assert (recipe.name, rows, recipe.teacher.model) == ("my_data", 20, "some-model")
    assert json.loads((board.root / "recipes/schemas/my_data.json").read_text())["required"] == ["question", "answer"]


def test_form_and_text_follow_each_other(board: Board) -> None:
    text = with_field(SUMS, "teacher.budget_usd", 2.5)
    text = with_field(text, "rows", 12)
    assert values_of(text)["teacher.budget_usd"] == 2.5
    assert dict(zip(FIELDS + LINES, fields_of(text), strict=True))["rows"] == 12
    assert values_of(with_field(text, "teacher.budget_usd", None)).get("teacher.budget_usd") is None
    assert values_of(text)["slots"] == {"n": {"int": [1, 9]}}
    text = with_field(text, "slots", f"{fields_of(text)[-2]}\ntone: calm, angry")
    assert values_of(text)["slots"] == {"n": {"int": [1, 9]}, "tone": {"choice": ["calm", "angry"]}}
    assert "checks" not in values_of(with_field(with_field(text, "checks", "n > 0"), "checks", ""))


def test_a_broken_text_is_named_by_its_line_and_changes_nothing(board: Board) -> None:
    with pytest.raises(RecipeError, match="line 3: broken YAML"):
        values_of("kind: dataset\nname: [unclosed\n")
    assert fields_of("kind: [") == [None] * len(FIELDS + LINES)


def test_a_schema_that_is_no_json_is_refused_before_anything_is_written(board: Board) -> None:
    draft = new_draft(board, "x")
    with pytest.raises(RecipeError, match="not valid JSON: line 1, column 2"):
        save_draft(board, Draft(draft.path, draft.text, draft.prompt, "{nonsense"))
    assert not (board.root / draft.path).exists()


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b"])
def test_a_new_recipe_has_a_plain_name(board: Board, name: str) -> None:
    with pytest.raises(RecipeError):
        new_draft(board, name)


def test_files_outside_of_the_project_are_not_written(board: Board) -> None:
    text = SUMS + "prompt: ../../outside.j2\n"
    with pytest.raises(RecipeError, match="outside of the project"):
        save_draft(board, Draft("recipes/sums.yaml", text, "stolen", ""))
    with pytest.raises(RecipeError, match="outside of the project"):
        open_draft(board, "../../etc/passwd")


def test_progress_counts_as_the_run_does_and_reads_only_what_is_new(board: Board) -> None:
    save_draft(board, Draft("recipes/sums.yaml", SUMS))
    work = folder_of(board, SUMS)
    assert work is not None
    progress = Progress(work.ledger_path)
    progress.refresh()
    assert progress.counts(6)["open"] == 6
    recipe = load_dataset_recipe(["recipes/sums.yaml"])
    first = generate(recipe, 2)
    progress.refresh()
    assert progress.counts(6) == {**first.counts, "rows": 6} | {"open": 4}
    with open(work.ledger_path, "ab") as file:
        file.write(b'{"t": "end", "id": "half')  # a line that is being written
    progress.refresh()
    assert progress.counts(6)["accepted"] == 2
    generate(recipe)
    progress.refresh()
    assert progress.counts(6)["accepted"] == 6
    assert [record["instruction"][:5] for record in progress.newest()] == ["Twice"] * 3
