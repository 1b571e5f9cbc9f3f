"""The page Make data in a browser, with a recipe that needs no teacher."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from browsing import PATIENCE_S, Board, choose, serious, settled, shoot
from own_words import foreign

pytestmark = pytest.mark.web
LONG = PATIENCE_S * 1000


def test_a_recipe_is_changed_checked_previewed_and_run_to_its_end(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/make?recipe=recipes/sums.yaml")
    settled(page)
    if not page.locator("#make-form").is_visible():
        choose(page, "make-recipe", "recipes/sums.yaml")
    page.wait_for_selector("#make-rows input")
    page.wait_for_function("document.querySelector('#make-rows input').value === '6'")
    page.locator("#make-rows input").fill("8")
    page.locator("h1").click()
    page.locator("#make-text button").first.click()
    page.wait_for_selector("#make-text >> text=rows: 8")
    page.locator("#make-check").click()
    page.wait_for_selector("#make-result >> text=8 rows")
    page.locator("#make-preview").click()
    page.wait_for_selector("#make-status >> text=3 of 8 rows decided", timeout=LONG)
    page.wait_for_selector("#make-status >> text=done", timeout=LONG)
    page.locator("#make-resume").click()
    page.wait_for_selector("#make-status >> text=8 of 8 rows decided", timeout=LONG)
    assert yaml.safe_load((board.folder / "recipes/sums.yaml").read_text())["rows"] == 8
    assert len(list((board.folder / "work/sums/ok").glob("*.json"))) == 8
    settled(page)
    assert serious(page) == []
    shoot(page, "make-done-en")
    page.locator("#make-status a:has-text('Review these rows')").click()
    page.wait_for_selector("#review-source")


def test_a_new_recipe_without_a_teacher_is_told_what_it_lacks(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/make", language="zh", theme="dark", width=390)
    settled(page)
    page.locator("#make-new-name").locator("input, textarea").fill("fresh")
    page.locator("#make-new").click()
    page.wait_for_selector("#make-check")
    page.locator("#make-check").click()
    page.wait_for_selector("#make-result .problems li:has-text('teacher.model')")
    page.wait_for_selector("#make-teacher-model.wrong >> text=此处缺少内容。")
    settled(page)
    assert serious(page) == []
    assert foreign(page, "zh") == []
    shoot(page, "make-new-zh-dark-390")


def test_a_wrong_value_is_told_at_its_field_and_a_fix_takes_it_out(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/make")
    settled(page)
    page.locator("#make-new-name").locator("input, textarea").fill("odd")
    page.locator("#make-new").click()
    page.wait_for_selector("#make-check")
    page.locator("#make-text button").first.click()
    page.locator("#make-text .cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\nmax_rejected: 7")
    page.locator("#make-teacher-parallel input").fill("0")
    page.locator("h1").click()
    page.wait_for_selector("#make-text >> text=parallel: 0")
    page.locator("#make-check").click()
    page.wait_for_selector("#make-teacher-parallel.wrong >> text=at least 1")
    page.locator("[data-fix]:has-text('max_rejected')").click()
    page.wait_for_function("!document.querySelector('#make-text .cm-content').innerText.includes('max_rejected')")
