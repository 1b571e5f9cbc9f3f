"""The page Eval in a browser."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from browsing import Board, choose, no_evil, serious, settled, shoot, sideways
from own_words import foreign

pytestmark = pytest.mark.web
BEFORE, AFTER = (f"work/predictions/{name}/generated_predictions.jsonl" for name in ("base", "tuned"))


def compared(open_page: Any, board: Board, **about: Any) -> Any:
    page = open_page(f"{board.url}/eval?before={BEFORE}&after={AFTER}", **about)
    page.wait_for_function("document.querySelector('#eval-after input')?.value.includes('tuned')")
    page.locator("#eval-compare").click()
    page.wait_for_selector(".scores")
    return page


def test_what_got_worse_is_found_with_both_answers_and_exported(board: Board, open_page: Any) -> None:
    page = compared(open_page, board)
    cells = page.locator(".scores tbody tr").first.locator("td").all_inner_texts()
    assert cells[:3] == ["exact_match", "0.25", "0.75"]
    assert cells[4] == "no sure difference"  # four rows are no proof
    page.locator("#eval-kind label:has-text('worse now')").click()
    page.wait_for_function("document.querySelectorAll('#eval-rows [data-pick]').length === 1")
    page.locator("#eval-rows [data-pick='0']").click()
    page.wait_for_selector("#eval-pair >> text=Row 0")
    assert page.locator("#eval-pair .talk p").all_inner_texts() == ["cat", "cow"]
    no_evil(page)
    settled(page)
    assert serious(page) == []
    shoot(page, "eval-compared-en")
    with page.expect_download() as download:
        page.locator("#eval-csv").click()
    text = download.value.path().read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["after"] for row in rows] == ["cow", "dog", "dog", "dog"]


def test_a_file_outside_of_the_project_is_refused(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/eval")
    settled(page)
    choose(page, "eval-before", "/etc/passwd")
    page.locator("#eval-compare").click()
    page.wait_for_selector("#eval-said .trouble >> text=outside of the project")


def test_on_a_phone_in_chinese(board: Board, open_page: Any) -> None:
    page = compared(open_page, board, language="zh", theme="dark", width=390)
    settled(page)
    assert serious(page) == []
    assert sideways(page) == 0
    assert foreign(page, "zh", ["base", "tuned", "work predictions generated jsonl", "exact match"]) == []
    shoot(page, "eval-compared-zh-dark-390")
