"""What is wrong with a recipe that makes data, at its keys, with fixes that lead to one that runs."""

from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from projects import SUMS

from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.making import Draft, new_draft, read_recipe, save_draft, values_of
from llmforge.webui.making_check import problems_of, show_problems, told
from llmforge.webui.words import Words
from llmforge.webui.wrong import Wrong

EN, ZH = Words("en"), Words("zh")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    return Board(tmp_path)


def problems(board: Board, text: str) -> list[Wrong[str]]:
    draft = Draft("recipes/sums.yaml", text)
    save_draft(board, draft)
    try:
        read_recipe(board, draft.path)
    except RecipeError as error:
        return problems_of(error, text)
    return []


def test_every_problem_has_its_key_and_a_fix_and_the_fixes_lead_to_a_recipe_that_runs(board: Board) -> None:
    text = SUMS.replace("mode: rules", "mode: rulez").replace("rows: 6", "rwos: 6") + "max_rejected: 7\n"
    found = problems(board, text)
    assert {(wrong.key, wrong.fix, wrong.to) for wrong in found} == {
        ("mode", "value", "rules"), ("rwos", "rename", "rows"), ("max_rejected", "remove", "max_rejected"),
    }  # fmt: skip
    for _ in range(3):
        text = problems(board, text)[0].fixed or ""
    assert problems(board, text) == []
    assert (values_of(text)["rows"], values_of(text)["mode"]) == (6, "rules")


def test_problems_are_told_in_the_readers_language(board: Board) -> None:
    text = SUMS.replace("rows: 6", "rows: many") + "colour: red\n"
    by_key = {wrong.key: wrong for wrong in problems(board, text)}
    assert told(EN, by_key["rows"], text) == "Got 'many'; expected a whole number, at least 1."
    assert "整数" in told(ZH, by_key["rows"], text)
    assert told(ZH, by_key["colour"], text) == "没有这个设置。"
    shown = show_problems(EN, list(by_key.values()), text)
    assert "<code>rows</code>" in shown
    assert 'data-fix="0"' in shown


def test_what_is_missing_is_told_at_its_field(board: Board) -> None:
    draft = new_draft(board, "fresh")
    save_draft(board, draft)
    with pytest.raises(RecipeError) as caught:
        read_recipe(board, draft.path)
    found = problems_of(caught.value, draft.text)
    assert [(wrong.key, told(EN, wrong, draft.text)) for wrong in found] == [("teacher.model", "This is missing.")]


def test_a_refusal_of_the_board_is_about_its_field() -> None:
    with pytest.raises(RecipeError) as caught:
        save_draft(Board(Path("/nonexistent")), Draft("recipes/x.yaml", SUMS, "", "{nonsense"))
    (wrong,) = problems_of(caught.value, SUMS)
    assert wrong.key == "output_schema"
