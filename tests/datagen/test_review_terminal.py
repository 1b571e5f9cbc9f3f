"""Review without a terminal: one record, one letter a line; with one: single keys."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Review
from llmforge.datagen.review_command import main
from llmforge.datagen.review_terminal import review_rows
from llmforge.errors import RecipeError


@pytest.fixture
def review(tmp_path) -> Review:
    rows = [(f"r{i}", {"instruction": f"ask {i}", "input": "", "output": {"n": i}}) for i in range(5)]
    return Review(tmp_path, rows, load_dataset_recipe([], "calibrate"))


def answered(review: Review, text: str) -> tuple[int, str]:
    out = io.StringIO()
    return review_rows(review, "li", io.StringIO(text), out), out.getvalue()


def states(review: Review) -> list[str]:
    return [item.state for item in review.items()]


def test_letters_decide_row_after_row(review):
    made, shown = answered(review, 'a\nr wrong number\ne output={"n": 7}\ns\nq\n')
    assert made == 4
    assert states(review) == ["accepted", "rejected", "edited", "skipped", "pending"]
    items = review.items()
    assert items[1].reviewed.note == "wrong number"
    assert items[2].reviewed.row["output"] == {"n": 7}
    assert "instruction: ask 0" in shown
    assert "1 of 5" in shown


def test_what_was_decided_does_not_come_again_and_the_end_of_input_ends_it(review):
    answered(review, "a\na\n")
    made, shown = answered(review, "r")
    assert made == 1
    assert "row r0" not in shown
    assert states(review)[:3] == ["accepted", "accepted", "rejected"]


def test_back_decides_again(review):
    answered(review, "a\nb\nr\nq\n")
    assert states(review)[0] == "rejected"


def test_a_wrong_answer_is_told_and_asked_again(review):
    made, shown = answered(review, "x\ne output=oops\ne nothing=1\ne\na\nq\n")
    assert made == 1
    assert "'x' is no answer" in shown
    assert "not valid JSON" in shown
    assert "is no edit" in shown
    assert states(review)[0] == "accepted"


def test_control_characters_in_a_row_do_not_reach_the_terminal(tmp_path):
    review = Review(tmp_path, [("a", {"output": "x\x1b[2Jy"})], load_dataset_recipe([], "calibrate"))
    assert "\x1b" not in answered(review, "q\n")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
def test_on_a_terminal_a_single_key_decides(review):
    import pty

    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"arsq")
    with open(terminal, encoding="utf-8", newline="") as source:
        made = review_rows(review, "li", source, io.StringIO())
    os.close(keyboard)
    assert made == 3
    assert states(review)[:3] == ["accepted", "rejected", "skipped"]


def test_the_command_needs_to_know_who_decides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USER", raising=False)
    Path("rows.jsonl").write_text(json.dumps({"instruction": "q", "output": "a"}) + "\n")
    with pytest.raises(RecipeError, match=r"who decides\? Set \$USER"):
        main(["rows.jsonl"])
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    assert main(["rows.jsonl", "--author", "li"]) == 0
    assert json.loads(Path("rows.jsonl.review/patches.jsonl").read_text())["author"] == "li"


def test_nothing_to_review_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="holds no accepted rows"):
        main(["name=x", "--status"])
