"""The page Review in a browser: by keys alone, with 10,000 rows, and through the board's death."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from browsing import choose, no_evil, serious, settled, shoot, sideways, start_board
from own_words import foreign
from projects import EVIL, write_lines

from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.review import Review

pytestmark = pytest.mark.web
ROWS = 10_000


@pytest.fixture
def many(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"r{i}",
            "instruction": "Which?",
            "input": f"report {i} {EVIL if i == 3 else ''}",
            "output": {"floor": i},
        }
        for i in range(ROWS)
    ]
    write_lines(tmp_path / "data/many.jsonl", rows)
    return tmp_path


def opened(page: Any, url: str) -> float:
    """Open the review; seconds until the first row is there."""
    page.goto(f"{url}/review?source=data/many.jsonl")
    page.wait_for_selector("#review-source input")
    settled(page)
    choose(page, "review-source", "data/many.jsonl")
    page.locator("#review-author").locator("input, textarea").fill("ann")
    page.locator("h1").click()
    began = time.monotonic()
    page.locator("#review-open").click()
    page.wait_for_selector(".record")
    return time.monotonic() - began


def at_row(page: Any, id: str) -> None:
    page.wait_for_selector(f".record[data-row='{id}']")


def states(folder: Path) -> dict[str, str]:
    return {item.id: item.state for item in Review.open(DatasetRecipe(), [folder / "data/many.jsonl"]).items()}


def test_fifty_decisions_by_keys_survive_the_board_being_killed(many: Path, open_page: Any) -> None:
    board = start_board(many)
    try:
        page = open_page(f"{board.url}/review")
        print(f"opened {ROWS} rows in {opened(page, board.url):.2f} s")
        for number in range(50):
            at_row(page, f"r{number}")
            page.keyboard.press("r" if number % 5 == 0 else "a")
        at_row(page, "r50")
        board.kill()
        found = states(many)
        assert [found[f"r{i}"] for i in range(50)] == ["rejected" if i % 5 == 0 else "accepted" for i in range(50)]
        assert found["r50"] == "pending"
        board = start_board(many)
        page = open_page(f"{board.url}/review")
        opened(page, board.url)
        at_row(page, "r50")  # the first row nobody decided about
        assert "50 of 10,000 rows decided" in page.locator(".progress").inner_text()
    finally:
        board.stop()


def test_edit_undo_search_and_help_by_keys(many: Path, open_page: Any) -> None:
    board = start_board(many)
    try:
        page = open_page(f"{board.url}/review")
        opened(page, board.url)
        page.locator(".queue [data-pick=r30]").click()
        at_row(page, "r30")
        page.keyboard.press("e")
        page.wait_for_selector("[data-field='/output']")
        page.locator("[data-field='/output']").fill('{"floor": }')
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".record .bad >> text=not valid JSON")
        typed = [page.locator(f"[data-field='/{name}']").input_value() for name in ("instruction", "input", "output")]
        assert typed == ["Which?", "report 30 ", '{"floor": }']  # what was typed is kept, in its own field
        page.locator("[data-field='/output']").fill('{"floor": 99}')
        page.keyboard.press("Control+Enter")
        at_row(page, "r31")
        assert states(many)["r30"] == "edited"
        page.keyboard.press("k")
        at_row(page, "r30")
        assert page.locator(".record .chip").inner_text() == "✎ edited"
        assert page.locator(".diff del").first.inner_text() == "30"
        settled(page)
        assert serious(page) == []
        shoot(page, "review-edited-en")
        page.keyboard.press("u")
        page.wait_for_selector("#review-trouble >> text=Taken back.")
        assert states(many)["r30"] == "pending"
        page.keyboard.press("?")
        page.wait_for_selector("#review-trouble >> text=J or K")
        page.keyboard.press("/")
        page.keyboard.type("report 9999")
        page.keyboard.press("Enter")
        at_row(page, "r9999")
        page.locator("#review-search").locator("input, textarea").fill("")
        page.keyboard.press("Enter")
        page.wait_for_selector(".queue >> text=of 10,000")
        page.locator("h1").click()
        no_evil(page)
    finally:
        board.stop()


def test_a_row_full_of_markup_stays_text(many: Path, open_page: Any) -> None:
    board = start_board(many)
    try:
        page = open_page(f"{board.url}/review", language="zh", theme="dark", width=390)
        opened(page, board.url)
        choose_filter = page.locator("#review-search").locator("input, textarea")
        choose_filter.fill("onerror")
        page.keyboard.press("Enter")
        at_row(page, "r3")
        page.locator("#review-edit").click()
        page.wait_for_selector("[data-field]")
        no_evil(page)
        settled(page)
        assert serious(page) == []
        assert sideways(page) == 0
        assert foreign(page, "zh", ["r3", "instruction input output"]) == []
        shoot(page, "review-edit-zh-dark-390")
    finally:
        board.stop()
